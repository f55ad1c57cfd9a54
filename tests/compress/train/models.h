/// Small models and data for the tests of training.
#pragma once

#include <torch/torch.h>

#include <coppice/train.h>

#include "support/support.h"

namespace coppice::testing {

/// y = x w, one linear map without bias and its data: the gradient of the mean squared error is known in closed form.
struct LinearModule : torch::nn::Module {
    explicit LinearModule(at::Tensor initial) { weight = register_parameter("weight", std::move(initial)); }
    at::Tensor weight;  // [in, out]
};

inline std::unique_ptr<Trainable> trainable_of(const std::shared_ptr<LinearModule>& module) {
    return trainable(module, [module](const Inputs& inputs) { return inputs[0].toTensor().matmul(module->weight); });
}

/// conv 1->4, batch norm, relu, dropout, pool, linear to 3 classes over images [N, 1, 8, 8]; the same weights as
/// torch::nn module and as TorchScript.
struct SmallNet : torch::nn::Module {
    SmallNet() : conv(torch::nn::Conv2dOptions(1, 4, 3).padding(1)), bn(4), fc(4 * 16, 3) {
        register_module("conv", conv);
        register_module("bn", bn);
        register_module("fc", fc);
        torch::NoGradGuard no_grad;
        conv->weight.copy_(sine({4, 1, 3, 3}, 0.5));
        conv->bias.copy_(sine({4}, 0.1));
        fc->weight.copy_(sine({3, 64}, 0.3));
        fc->bias.zero_();
    }
    at::Tensor forward(at::Tensor x) {
        x = torch::relu(bn(conv(x)));
        x = torch::dropout(x, dropout, is_training());
        return fc(torch::flatten(torch::max_pool2d(x, {2, 2}), 1));
    }
    torch::nn::Conv2d conv;
    torch::nn::BatchNorm2d bn;
    torch::nn::Linear fc;
    double dropout = 0.2;
};

inline Model small_model(const std::string& dropout = "0.2") {
    return build_model({{"conv.weight", sine({4, 1, 3, 3}, 0.5)},
                        {"conv.bias", sine({4}, 0.1)},
                        {"bn.weight", at::ones({4})},
                        {"bn.bias", at::zeros({4})},
                        {"bn.running_mean", at::zeros({4})},
                        {"bn.running_var", at::ones({4})},
                        {"fc.weight", sine({3, 64}, 0.3)},
                        {"fc.bias", at::zeros({3})}},
                       R"(
def forward(self, x):
    x = torch.conv2d(x, self.conv.weight, self.conv.bias, [1, 1], [1, 1])
    x = torch.batch_norm(x, self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, self.training, 0.1, 1e-5, True)
    x = torch.dropout(torch.relu(x), )" +
                           dropout + R"(, self.training)
    x = torch.flatten(torch.max_pool2d(x, [2, 2]), 1)
    return torch.linear(x, self.fc.weight, self.fc.bias)
)");
}

/// `count` images whose class is the third of the picture that is bright.
inline std::shared_ptr<Dataset> stripes(int64_t count) {
    auto images = sine({count, 1, 8, 8}, 0.3);
    auto labels = at::arange(count).remainder(3);
    for (int64_t i = 0; i < count; ++i) images[i].slice(2, 3 * (i % 3), 3 * (i % 3) + 2).add_(1.0);
    return tensor_dataset({images}, labels, "stripes");
}

inline double accuracy(Trainable& module, const Dataset& data) {
    module.train(false);
    torch::NoGradGuard no_grad;
    std::vector<int64_t> all(static_cast<size_t>(data.size()));
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int64_t>(i);
    const auto batch = data.batch(all);
    return (module.forward(batch.inputs).argmax(1) == batch.target).to(at::kDouble).mean().item<double>();
}

/// All parameters and buffers, copied.
inline std::vector<at::Tensor> values(Trainable& module) {
    std::vector<at::Tensor> all;
    for (const auto& [name, tensor] : module.parameters()) all.push_back(tensor.detach().clone());
    for (const auto& [name, tensor] : module.buffers()) all.push_back(tensor.detach().clone());
    return all;
}

inline bool bitwise_equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
    if (a.size() != b.size()) return false;
    for (size_t i = 0; i < a.size(); ++i)
        if (!at::equal(a[i], b[i])) return false;
    return true;
}

}  // namespace coppice::testing
