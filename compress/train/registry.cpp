#include <coppice/train.h>

#include "train/finetune.h"

namespace coppice {

const std::vector<Entry<Loss>>& builtin_losses() {
    static const std::vector<Entry<Loss>> table = {
        {"cross_entropy", "cross entropy with class indices or probabilities",
         [](Options& o) {
             return cross_entropy(
                 o.number_in("label_smoothing", 0, 0, 0.999, "share of the target spread over all classes"));
         }},
        {"mse", "mean squared error", [](Options&) { return mean_squared_error(); }},
        {"pair_similarity", "squared error of the cosine similarity of pairs against scores of 0 to 5",
         [](Options&) { return pair_similarity(); }},
    };
    return table;
}

std::vector<Entry<Stage>> train_stages(std::vector<Entry<Loss>> losses) {
    return {{"train.finetune", "trains all parameters on the training data, with a teacher where the loss needs one",
             [losses = std::move(losses)](Options& o) { return finetune(o, losses); }}};
}

}  // namespace coppice
