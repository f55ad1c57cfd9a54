/// What every stage does before it looks for groups or blocks. Private to prune.
#pragma once

#include <coppice/prune.h>

namespace coppice::prune {

/// unfuse_attention(model); where that changed something, context.facts "note" and the log say so.
Model unfused(const Model& model, Context& context);

/// Gives `apart`, which unfuse_attention(model) made, the tensors of `model` themselves in the place of copies.
void share_tensors(Model& apart, const Model& model);

}  // namespace coppice::prune
