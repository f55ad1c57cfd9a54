// A torch::nn model with a forward() of its own is trained, trained again with rounding, and becomes int8.
//
//   qat_torch_nn OUT.pt
//
// OUT.pt is TorchScript that stock LibTorch loads. The data are made up: noisy stripes of three directions.
#include <torch/torch.h>

#include <coppice/error.h>
#include <coppice/qat.h>

#include <iostream>

namespace {

struct Net : torch::nn::Module {
    torch::nn::Conv2d stem{register_module("stem", torch::nn::Conv2d(torch::nn::Conv2dOptions(1, 8, 3).padding(1)))};
    torch::nn::BatchNorm2d norm{register_module("norm", torch::nn::BatchNorm2d(8))};
    torch::nn::Conv2d inner{register_module("inner", torch::nn::Conv2d(torch::nn::Conv2dOptions(8, 8, 3).padding(1)))};
    torch::nn::Linear head{register_module("head", torch::nn::Linear(8, 3))};

    at::Tensor forward(const at::Tensor& images) {
        auto x = torch::relu(norm(stem(images)));
        x = torch::relu(inner(x) + x);  // residual
        return head(torch::max_pool2d(x, 4).mean({2, 3}));
    }
};

/// images [count, 1, 12, 12], classes [count]
std::pair<at::Tensor, at::Tensor> stripes(int64_t count) {
    const auto classes = torch::randint(3, {count});
    const auto angle = classes.to(torch::kFloat).reshape({-1, 1, 1, 1}) * (M_PI / 3);
    const auto y = torch::arange(12.0f).reshape({12, 1}), x = torch::arange(12.0f);
    const auto waves = torch::sin(1.5f * (x * angle.cos() + y * angle.sin()) + 6 * torch::rand({count, 1, 1, 1}));
    return {waves + 1.6 * torch::randn({count, 1, 12, 12}), classes};
}

/// A loop of one's own: `forward` and `parameters` are a module's, or those of a model in training.
void train(const std::function<at::Tensor(const at::Tensor&)>& forward, const std::vector<at::Tensor>& parameters,
           int steps, double lr) {
    torch::optim::SGD optimizer(parameters, torch::optim::SGDOptions(lr).momentum(0.9));
    for (int step = 0; step < steps; ++step) {
        const auto [images, classes] = stripes(32);
        optimizer.zero_grad();
        torch::cross_entropy_loss(forward(images), classes).backward();
        torch::nn::utils::clip_grad_norm_(parameters, 1.0);
        optimizer.step();
    }
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc != 2) {
        std::cerr << "usage: qat_torch_nn OUT.pt\n";
        return 2;
    }
    torch::manual_seed(1);
    auto net = std::make_shared<Net>();
    train([&](const at::Tensor& images) { return net->forward(images); }, net->parameters(), 150, 0.05);

    std::vector<coppice::Inputs> calibration;
    for (int i = 0; i < 4; ++i) calibration.push_back({stripes(32).first});
    coppice::quantize::QatOptions options;
    options.weight_bits = 4;     // stored in int8, like everything with 8-bit activations
    options.train_norms = true;  // so that what is trained fits back into the module
    options.norm_batches = 50;   // then running statistics stay
    auto training = coppice::quantize::prepare(
        net, [&](const coppice::Inputs& inputs) -> c10::IValue { return net->forward(inputs[0].toTensor()); },
        {stripes(1).first}, calibration, options);

    const auto module = training.trainable();
    std::vector<at::Tensor> parameters;  // the model's and the quantizers'
    for (const auto& [name, parameter] : module->parameters()) parameters.push_back(parameter);
    module->train(true);
    train([&](const at::Tensor& images) { return module->forward({images}); }, parameters, 100, 0.005);
    module->train(false);
    coppice::copy_back(*module, *net);

    const auto int8 = coppice::quantize::convert(training);
    int8.save(argv[1]);

    torch::NoGradGuard no_grad;
    net->eval();
    const auto [images, classes] = stripes(1000);
    const auto accuracy = [&, classes = classes](const at::Tensor& output) {
        return output.argmax(1).eq(classes).to(torch::kFloat).mean().item<double>();
    };
    std::cout << "float " << accuracy(net->forward(images)) << ", int8 "
              << accuracy(coppice::first_tensor(int8.forward({images}))) << "\n";
    return 0;
} catch (const coppice::Error& error) {
    std::cerr << error.what() << "\n";
    return 1;
}
