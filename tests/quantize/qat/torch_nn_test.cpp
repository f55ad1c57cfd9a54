// Quantization-aware training of torch::nn models: traced, trained, converted, brought back; and FakeQuantize with an
// observer inside a module of one's own.
#include <torch/torch.h>

#include <coppice/error.h>
#include <coppice/qat.h>

#include "../layer_check.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

/// Two residual blocks, the second with a projection, and a forward of its own.
struct ResidualNet : torch::nn::Module {
    torch::nn::Conv2d stem, first, second, projection;
    torch::nn::BatchNorm2d stem_norm, first_norm, second_norm;
    torch::nn::Linear head;

    ResidualNet()
        : stem(torch::nn::Conv2dOptions(3, 8, 3).padding(1).bias(false)),
          first(torch::nn::Conv2dOptions(8, 8, 3).padding(1).bias(false)),
          second(torch::nn::Conv2dOptions(8, 12, 3).stride(2).padding(1).bias(false)),
          projection(torch::nn::Conv2dOptions(8, 12, 1).stride(2)),
          stem_norm(8),
          first_norm(8),
          second_norm(12),
          head(12, 4) {
        register_module("stem", stem);
        register_module("stem_norm", stem_norm);
        register_module("first", first);
        register_module("first_norm", first_norm);
        register_module("second", second);
        register_module("second_norm", second_norm);
        register_module("projection", projection);
        register_module("head", head);
        torch::NoGradGuard no_grad;
        for (auto& entry : named_parameters())
            if (entry.value().dim() > 1) entry.value().copy_(sine(entry.value().sizes(), 0.4));
        for (auto* norm : {&stem_norm, &first_norm, &second_norm})
            (*norm)->running_var.copy_(1 + sine((*norm)->running_var.sizes(), 0.4));
    }

    at::Tensor forward(const at::Tensor& images) {
        auto x = torch::relu(stem_norm(stem(images)));
        x = torch::relu(first_norm(first(x)) + x);
        x = torch::relu(second_norm(second(x)) + projection(x));
        return head(x.mean({2, 3}));
    }
};

struct Prepared {
    std::shared_ptr<ResidualNet> net = std::make_shared<ResidualNet>();
    at::Tensor classes = at::arange(16).remainder(4);
    at::Tensor images = sine({16, 3, 8, 8}, 1.5) + 0.5 * classes.reshape({16, 1, 1, 1});
    QatModel training;

    explicit Prepared(const QatOptions& options)
        : training(prepare(
              net, [this](const Inputs& inputs) -> c10::IValue { return net->forward(inputs[0].toTensor()); },
              {images.slice(0, 0, 1)}, std::vector<Inputs>(1, Inputs{images}), options)) {}

    /// A loop of a user's own. @return loss of the first and the last step
    std::pair<double, double> train(int steps) {
        const auto module = training.trainable();
        std::vector<at::Tensor> parameters;
        for (const auto& [name, parameter] : module->parameters()) parameters.push_back(parameter);
        torch::optim::SGD optimizer(parameters, torch::optim::SGDOptions(0.01).momentum(0.9));
        std::pair<double, double> losses;
        module->train(true);
        for (int step = 0; step < steps; ++step) {
            optimizer.zero_grad();
            const auto loss = torch::cross_entropy_loss(module->forward({images}), classes);
            loss.backward();
            torch::nn::utils::clip_grad_norm_(parameters, 1.0);
            optimizer.step();
            (step == 0 ? losses.first : losses.second) = loss.item<double>();
        }
        module->train(false);
        return losses;
    }
};

TEST(QatOfTorchNn, ALoopOfOnesOwnTrainsWhatTheInt8KernelsCompute) {
    for (const bool train_norms : {false, true}) {
        QatOptions options;
        options.train_norms = train_norms;
        Prepared prepared(options);
        const auto [first, last] = prepared.train(40);
        EXPECT_LT(last, 0.9 * first);
        torch::NoGradGuard no_grad;
        const Inputs inputs = {prepared.images.slice(0, 0, 4)};
        // 1e-5: float32 sums in another order.
        EXPECT_LE(max_difference(fake_quantized(prepared.training.trained_plan(), inputs).toTensor(),
                                 prepared.training.forward(inputs).toTensor()),
                  1e-5);
        const auto checked = testing::check_every_layer(convert(prepared.training), inputs);
        int convolutions = 0, linear = 0;
        for (const auto& [name, count] : checked.operators) {
            convolutions += name.rfind("quantized::conv2d", 0) == 0 ? count : 0;
            linear += name.rfind("quantized::linear", 0) == 0 ? count : 0;
        }
        EXPECT_EQ(convolutions, 4);
        EXPECT_EQ(linear, 1);
        EXPECT_LE(checked.worst_quanta, 1.01) << checked.worst;  // a sum between two integers falls to either
    }
}

TEST(QatOfTorchNn, WhatWasTrainedGoesBackIntoTheModuleUnderItsNames) {
    QatOptions options;
    options.train_norms = true;
    options.weight_bits = options.activation_bits = 4;
    Prepared prepared(options);
    const auto before = prepared.net->first->weight.detach().clone();
    prepared.train(6);
    const auto module = prepared.training.trainable();
    EXPECT_TRUE(at::equal(prepared.net->first->weight, before));  // training has copies
    copy_back(*module, *prepared.net);
    EXPECT_GT(max_difference(prepared.net->first->weight.detach(), before), 1e-4);

    // The float module with its batch norms computes what the float model under training does, folded.
    torch::NoGradGuard no_grad;
    convert(prepared.training);  // folds
    prepared.net->eval();
    const auto x = prepared.images.slice(0, 0, 4);
    const auto expected = prepared.training.model().forward({x}).toTensor();
    // 1e-4: folding multiplies scales into weights before the sums instead of behind them.
    EXPECT_LE(max_difference(prepared.net->forward(x), expected), 1e-4 * expected.abs().max().item<double>());
}

TEST(QatOfTorchNn, FoldedBatchNormsDoNotGoBack) {
    Prepared prepared{QatOptions()};
    const auto module = prepared.training.trainable();
    EXPECT_ERROR(copy_back(*module, *prepared.net), InvalidArgument, "train_norms");
}

TEST(QatOfTorchNn, ASequentialIsPreparedWithoutAForward) {
    torch::nn::Sequential net(torch::nn::Conv2d(torch::nn::Conv2dOptions(3, 4, 3)), torch::nn::ReLU(),
                              torch::nn::Flatten(), torch::nn::Linear(4 * 36, 3));
    const auto x = sine({2, 3, 8, 8}, 1.2);
    const auto training = prepare(net, {x}, std::vector<Inputs>(1, Inputs{x}));
    std::set<std::string> names;
    for (const auto& [name, parameter] : training.trainable()->parameters()) names.insert(name);
    EXPECT_TRUE(names.count("0.weight") && names.count("3.bias") && names.count("quantizer.3.weight.learned"));
    torch::NoGradGuard no_grad;
    const auto checked = testing::check_every_layer(convert(training), {x});
    EXPECT_EQ(checked["quantized::conv2d_relu"], 1);
    EXPECT_LE(checked.worst_quanta, 1.01) << checked.worst;
}

TEST(FakeQuantizeObserver, GivesTheRangeThatLearningStartsFrom) {
    const auto x = sine({4, 50}, 2.0);
    auto watching = histogram();
    watching->observe(x);
    const auto range = watching->range(16);
    for (const auto& quantizer : {lsq_plus, pact}) {
        FakeQuantizeOptions options;
        options.bits = 4;
        options.quantizer = quantizer();
        options.symmetric = !options.quantizer->offsets();
        options.observer = histogram();
        FakeQuantize module(options);
        module->start(x);
        // Affine: 15 steps from low to high; symmetric: 7 positive integers reach the farther end.
        const double expected =
            options.symmetric ? std::max(range.high, -range.low) / 7 : (range.high - range.low) / 15;
        EXPECT_NEAR(module->scale().item<double>(), expected, 1e-6 * expected);
    }
}

TEST(FakeQuantizeObserver, IsFollowedUntilFrozenWhereNothingIsLearned) {
    FakeQuantizeOptions options;
    options.symmetric = false;
    options.quantizer = minmax_range();
    options.observer = minmax();
    options.watch_batches = 2;
    FakeQuantize module(options);
    const auto step_of = [&](double low, double high) {
        module->forward(at::tensor({static_cast<float>(low), static_cast<float>(high)}));
        return 255 * module->scale().item<double>();
    };
    // Smallest and largest of everything so far, not the moving average of minmax_range; then nothing moves any more.
    EXPECT_NEAR(step_of(-1, 2), 3, 1e-5);
    EXPECT_NEAR(step_of(-0.5, 4), 5, 1e-5);
    EXPECT_NEAR(step_of(-8, 8), 5, 1e-5);
}

TEST(FakeQuantizeObserver, GoesOnFromACheckpoint) {
    for (const auto& row : observers()) {
        SCOPED_TRACE(row.name);
        Options settings("test");
        FakeQuantizeOptions options;
        options.bits = 4;
        options.symmetric = false;
        options.quantizer = minmax_range();
        options.observer = row.make(settings);
        const auto batch = [](int number) { return sine({500}, 1.0 + 0.5 * number) + 0.3 * number; };
        const auto step = [](const FakeQuantize& module) {
            return std::make_pair(module->affine().scale, module->affine().zero_point);
        };
        FakeQuantize whole(options), resumed(options), fresh(options);
        whole->forward(batch(2));
        whole->forward(batch(1));
        std::stringstream file;
        torch::save(whole, file);
        whole->forward(batch(0));
        torch::load(resumed, file);
        resumed->forward(batch(0));
        EXPECT_EQ(step(resumed), step(whole));
        // Not what the last batch alone would give; and a module that has gone on can be set back.
        fresh->forward(batch(0));
        EXPECT_NE(step(fresh), step(whole));
        whole->forward(batch(4));
        EXPECT_NE(step(whole), step(resumed));
        file.seekg(0);
        torch::load(whole, file);
        whole->forward(batch(0));
        EXPECT_EQ(step(resumed), step(whole));
    }
}

TEST(FakeQuantizeObserver, IsRefusedForWeights) {
    auto options = weights_of(8, 4);
    options.observer = minmax();
    EXPECT_ERROR(FakeQuantize{options}, InvalidArgument, "observer");
}

}  // namespace
}  // namespace coppice::quantize
