#include <coppice/error.h>

#include <cmath>

#include "messages.h"
#include "training/stages.h"

namespace coppice::prune {

void check_growth(const char* where, const GradualOptions& options, int64_t count) {
    const auto epochs = static_cast<double>(count);
    if (!(options.begin_epoch >= 0 && options.begin_epoch <= options.end_epoch && options.end_epoch <= epochs))
        throw InvalidArgument(where,
                              "the masks grow from epoch " + text_of(options.begin_epoch, 6) + " to " +
                                  text_of(options.end_epoch, 6) + " of " + text_of(epochs, 6),
                              "Give 0 <= begin_epoch <= end_epoch <= epochs.");
    if (options.every_steps < 1)
        throw InvalidArgument(where, "every_steps is " + std::to_string(options.every_steps), "It must be at least 1.");
}

GrowthPlan::GrowthPlan(const GradualOptions& options, const TrainOptions& train, int64_t examples, bool once)
    : every(options.every_steps), once(once), soft(options.soft) {
    const int64_t steps =
        train.drop_last ? examples / train.batch_size : (examples + train.batch_size - 1) / train.batch_size;
    begin = std::llround(options.begin_epoch * static_cast<double>(steps));
    end = std::llround(options.end_epoch * static_cast<double>(steps));
    total = steps * train.epochs;
}

std::optional<double> GrowthPlan::time(int64_t step) const {
    if (step < begin || (step > end && !soft) || (once && step > begin && !soft)) return std::nullopt;
    if ((step - begin) % every != 0 && step != end && !(soft && step == total)) return std::nullopt;
    return step >= end ? 1 : static_cast<double>(step - begin) / static_cast<double>(end - begin);
}

}  // namespace coppice::prune
