// Transposed convolutions that were rewritten give channels-last tensors, and LibTorch hands that on.
#include <coppice/dataflow.h>

#include "layers/layers.h"

namespace coppice::quantize {

void keep_outputs_contiguous(Model& after, const Model& before, const Inputs& example) {
    torch::NoGradGuard no_grad;
    const auto exact = all_tensors(before.forward(example)), made = all_tensors(after.forward(example));
    const auto places = output_places(*after.graph());
    if (exact.size() != made.size() || places.size() != made.size()) return;  // no telling which leaves where
    bool any = false;
    for (size_t i = 0; i < made.size(); ++i) {
        if (!exact[i].is_contiguous() || made[i].is_contiguous()) continue;
        give_contiguous(*after.graph(), places[i]);
        any = true;
    }
    if (any) after.refresh();
}

}  // namespace coppice::quantize
