// score = 1 - mean over positions of cos(x, y), y = x + f(x): a block that turns its input little is missed little (Men
// et al., arXiv 2403.03853, equation 1). x is a vector over channels: dimension 1 where the block holds a convolution,
// else the last one.
#include "depth/depth.h"

namespace coppice::prune {

using namespace torch::jit;

namespace {

class Similarity final : public BlockCriterion {
public:
    Similarity(int64_t samples, int64_t batch_size) : samples_(samples), batch_size_(batch_size) {}

    Needs needs() const override {
        Needs needs;
        needs.calibration_data = true;
        return needs;
    }

    std::vector<double> scores(const Model& model, const std::vector<ResidualBlock>& blocks,
                               Context& context) const override {
        torch::NoGradGuard no_grad;
        if (!context.data.calibration || context.data.calibration->size() == 0)
            throw InvalidArgument("prune.depth", "there is no calibration data",
                                  "Give `calibration` in `data:`, or use criterion evaluate.");
        std::map<const Node*, size_t> adds;
        std::vector<int64_t> dims;
        for (size_t i = 0; i < blocks.size(); ++i) {
            adds[blocks[i].add] = i;
            bool convolves = false;
            for (Node* node : blocks[i].nodes) convolves |= as_conv(node).has_value();
            dims.push_back(convolves ? 1 : -1);
        }
        std::vector<double> sums(blocks.size(), 0), counts(blocks.size(), 0);
        at::Tensor x;  // before the add, which may write into it
        NodeHooks hooks;
        hooks.before = [&](const Node* node, std::vector<c10::IValue>& inputs) {
            const auto found = adds.find(node);
            if (found == adds.end()) return;
            const auto& block = blocks[found->second];
            x = inputs[node->input(0) == block.input ? 0 : 1].toTensor().to(at::kDouble).clone();
        };
        hooks.after = [&](const Node* node, std::vector<c10::IValue>& outputs) {
            const auto found = adds.find(node);
            if (found == adds.end()) return;
            const size_t i = found->second;
            const auto y = outputs[0].toTensor().to(at::kDouble);
            const int64_t dim = dims[i] == 1 && y.dim() < 3 ? -1 : dims[i];
            const auto cosine = at::cosine_similarity(x, y, dim);
            sums[i] += cosine.sum().item<double>();
            counts[i] += static_cast<double>(cosine.numel());
        };
        BatchIterator batches(*context.data.calibration, std::min(batch_size_, samples_), /*shuffle=*/true,
                              context.seed);
        for (int64_t seen = 0; seen < samples_; seen += batch_size_) {
            if (context.interrupted()) throw Interrupted("prune.depth", "stopped by request", "");
            const auto batch = batches.next();
            if (!batch) break;
            run_nodes(model, batch->inputs, hooks);
        }
        std::vector<double> result;
        for (size_t i = 0; i < blocks.size(); ++i) {
            if (counts[i] == 0 || !std::isfinite(sums[i]))
                throw UnsupportedModel("prune.depth at " + blocks[i].name,
                                       counts[i] == 0 ? "the calibration data does not reach it"
                                                      : "its values on the calibration data are not finite",
                                       "Put it into `ignore`, or check the data.");
            result.push_back(1 - sums[i] / counts[i]);
        }
        return result;
    }

private:
    const int64_t samples_, batch_size_;
};

}  // namespace

std::unique_ptr<BlockCriterion> block_similarity(int64_t samples, int64_t batch_size) {
    if (samples < 1 || batch_size < 1)
        throw InvalidArgument("prune.depth", "samples and batch_size must be at least 1",
                              "The defaults are 128 and 32.");
    return std::make_unique<Similarity>(samples, batch_size);
}

}  // namespace coppice::prune
