// Batch-norm statistics of a model that was cut belong to the uncut one: the inputs of later layers have other means
// and variances now. Running the model on a few batches with the statistics of each batch, and averaging those, repairs
// much of the loss without training.
#include <coppice/error.h>
#include <coppice/prune.h>

namespace coppice::prune {

void reestimate_batch_norm(Model& model, const Dataset& data, int64_t batches, int64_t batch_size, uint64_t seed) {
    if (data.size() == 0)
        throw InvalidArgument("prune.channel", "bn_batches needs calibration data",
                              "Give `calibration`, or bn_batches: 0.");
    torch::NoGradGuard no_grad;
    struct Statistics {
        std::string mean_name, var_name;
        at::Tensor mean, var;
    };
    std::map<const torch::jit::Node*, Statistics> statistics;
    for (auto* node : all_nodes(*model.graph())) {
        const auto view = as_batch_norm(node);
        if (!view || !view->tracks_statistics) continue;
        const auto mean = attribute_name(view->running_mean), var = attribute_name(view->running_var);
        if (!mean || !var) continue;
        Statistics entry{*mean, *var, get_attribute(model, *mean).toTensor().clone(),
                         get_attribute(model, *var).toTensor().clone()};
        statistics.emplace(node, std::move(entry));
    }
    int64_t count = 0;
    NodeHooks hooks;
    hooks.before = [&](const torch::jit::Node* node, std::vector<c10::IValue>& inputs) {
        const auto found = statistics.find(node);
        if (found == statistics.end()) return;
        // Inputs of aten::batch_norm: 3 and 4 running statistics, 5 training, 6 momentum. A momentum of 1/n in step n
        // gives the mean.
        inputs[3] = found->second.mean;
        inputs[4] = found->second.var;
        inputs[5] = true;
        inputs[6] = 1.0 / static_cast<double>(count + 1);
    };
    BatchIterator iterator(data, batch_size, /*shuffle=*/true, seed);
    for (; count < batches; ++count) {
        const auto batch = iterator.next();
        if (!batch) break;
        run_nodes(model, batch->inputs, hooks);
    }
    for (auto& [node, entry] : statistics) {
        set_tensor(model, entry.mean_name, entry.mean);
        set_tensor(model, entry.var_name, entry.var);
    }
}

}  // namespace coppice::prune
