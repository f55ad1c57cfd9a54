/// Private to train/.
#pragma once

#include <coppice/train.h>

namespace coppice {

/// The stage train.finetune, its loss one of `losses` or the task's default.
std::unique_ptr<Stage> finetune(Options& options, const std::vector<Entry<Loss>>& losses);

}  // namespace coppice
