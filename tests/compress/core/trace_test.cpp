// torch::nn models through the tracer: names, sizes, training mode, what is refused, and the way back.
#include <torch/torch.h>

#include <coppice/error.h>
#include <coppice/trace.h>

#include "support/support.h"

namespace coppice {
namespace {

using namespace coppice::testing;

/// A residual block with batch norms, dropout, and the batch size in plain C++ numbers.
struct Net : torch::nn::Module {
    torch::nn::Conv2d stem, inner, shortcut;
    torch::nn::BatchNorm2d stem_norm, inner_norm;
    torch::nn::Dropout dropout;
    torch::nn::Linear head;

    Net()
        : stem(torch::nn::Conv2dOptions(3, 6, 3).padding(1).bias(false)),
          inner(torch::nn::Conv2dOptions(6, 8, 3).padding(1)),
          shortcut(torch::nn::Conv2dOptions(6, 8, 1)),
          stem_norm(6),
          inner_norm(8),
          dropout(torch::nn::DropoutOptions(0.5)),
          head(8 * 16, 5) {
        register_module("stem", stem);
        register_module("stem_norm", stem_norm);
        auto block = std::make_shared<torch::nn::Module>("Block");
        block->register_module("inner", inner.ptr());
        block->register_module("norm", inner_norm.ptr());
        block->register_module("shortcut", shortcut.ptr());
        register_module("block", block);
        register_module("dropout", dropout);
        register_module("head", head);
        torch::NoGradGuard no_grad;
        for (auto& parameter : parameters()) parameter.copy_(sine(parameter.sizes(), 0.3));
        stem_norm->running_mean.copy_(sine({6}, 0.2));
        stem_norm->running_var.copy_(1 + sine({6}, 0.3));
    }

    at::Tensor forward(const at::Tensor& images) {
        auto x = torch::relu(stem_norm(stem(images)));
        x = torch::relu(inner_norm(inner(x)) + shortcut(x));
        x = torch::max_pool2d(x, 2);
        return head(dropout(x.view({x.size(0), x.size(1) * 16})));
    }
};

std::function<c10::IValue(const Inputs&)> runner(const std::shared_ptr<Net>& net) {
    return [net](const Inputs& inputs) -> c10::IValue { return net->forward(inputs[0].toTensor()); };
}

// The same kernels run in the same order.
constexpr double kSame = 1e-6;

TEST(Trace, NamesStayAndTheResultFollowsTheBatchSizeAndTheTrainingMode) {
    auto net = std::make_shared<Net>();
    net->train();
    const auto model = trace(net, runner(net), {sine({1, 3, 8, 8})});
    EXPECT_TRUE(net->is_training());  // as it was

    std::set<std::string> expected, found;
    for (const auto& entry : net->named_parameters()) expected.insert(entry.key());
    for (const auto& entry : model.module().named_parameters()) found.insert(entry.name);
    EXPECT_EQ(found, expected);
    EXPECT_TRUE(expected.count("block.inner.weight"));

    torch::NoGradGuard no_grad;
    net->eval();
    for (const int64_t batch : {1, 2, 7}) {
        const auto x = sine({batch, 3, 8, 8}, 1.7);
        EXPECT_LE(max_difference(model.forward({x}).toTensor(), net->forward(x)), kSame) << batch;
    }

    net->train();
    auto training = model.clone();
    training.train();
    const auto x = sine({4, 3, 8, 8}, 1.7);
    at::manual_seed(3);
    const auto y = net->forward(x);
    at::manual_seed(3);
    EXPECT_LE(max_difference(training.forward({x}).toTensor(), y),
              kSame);  // the same mask of dropout, batch statistics
    EXPECT_LE(
        max_difference(get_attribute(training, "stem_norm.running_mean").toTensor(), net->stem_norm->running_mean),
        kSame);
    EXPECT_GT(max_difference(get_attribute(model, "stem_norm.running_mean").toTensor(), net->stem_norm->running_mean),
              0.01);  // a copy
}

TEST(Trace, TheSavedModelIsTorchScriptOfStockLibTorch) {
    auto net = std::make_shared<Net>();
    TraceOptions options;
    options.arguments = {"images"};
    const auto model = trace(net, runner(net), {sine({2, 3, 8, 8})}, options);
    TemporaryFolder folder;
    model.save(folder / "net.pt");
    auto loaded = torch::jit::load((folder / "net.pt").string());
    loaded.eval();
    net->eval();
    torch::NoGradGuard no_grad;
    const auto x = sine({3, 3, 8, 8});
    EXPECT_LE(max_difference(loaded.forward({x}).toTensor(), net->forward(x)), kSame);
    EXPECT_EQ(loaded.get_method("forward").function().getSchema().arguments()[1].name(), "images");
}

TEST(Trace, ASequentialNeedsNoForward) {
    torch::nn::Sequential net(torch::nn::Conv1d(torch::nn::Conv1dOptions(2, 4, 3).padding(1)),
                              torch::nn::BatchNorm1d(4), torch::nn::GELU(), torch::nn::AvgPool1d(2),
                              torch::nn::Flatten(), torch::nn::Linear(torch::nn::LinearOptions(4 * 6, 3).bias(false)));
    net->eval();
    const auto model = trace(net, {sine({2, 2, 12})});
    torch::NoGradGuard no_grad;
    const auto x = sine({5, 2, 12}, 1.3);
    EXPECT_LE(max_difference(model.forward({x}).toTensor(), net->forward(x)), kSame);
    EXPECT_TRUE(has_attribute(model, "5.weight"));
}

TEST(Trace, RecurrentCellsAndAttentionRunAtOtherBatchSizes) {
    struct Both : torch::nn::Module {
        torch::nn::GRU gru{register_module("gru", torch::nn::GRU(torch::nn::GRUOptions(6, 8).batch_first(true)))};
        torch::nn::TransformerEncoderLayer layer{register_module(
            "layer",
            torch::nn::TransformerEncoderLayer(torch::nn::TransformerEncoderLayerOptions(8, 2).dim_feedforward(12)))};
        at::Tensor forward(const at::Tensor& x) { return layer(std::get<0>(gru(x)).transpose(0, 1)).mean(0); }
    };
    auto net = std::make_shared<Both>();
    const auto model =
        trace(net, [&](const Inputs& inputs) -> c10::IValue { return net->forward(inputs[0].toTensor()); },
              {sine({2, 4, 6})});
    net->eval();
    torch::NoGradGuard no_grad;
    const auto x = sine({5, 4, 6}, 0.9);
    EXPECT_LE(max_difference(model.forward({x}).toTensor(), net->forward(x)), kSame);
}

TEST(Trace, OtherInputsTellWhichNumbersFollowWhichSize) {
    auto net = std::make_shared<torch::nn::Module>("Halves");
    const auto run = [](const Inputs& inputs) -> c10::IValue {
        const auto x =
            inputs[0].toTensor();  // [N, C, L]: both halves of the signal side by side, without the last step
        return x.narrow(2, 0, x.size(2) - 1).reshape({x.size(0), 2 * x.size(1), -1}) +
               x.slice(2, 0, x.size(2) / 2).sum();
    };
    TraceOptions options;
    options.other = {sine({3, 4, 17})};
    const auto model = trace(net, run, {sine({3, 4, 9})}, options);
    const auto x = sine({3, 4, 17}, 0.8);
    EXPECT_LE(max_difference(model.forward({x}).toTensor(), run({x}).toTensor()), kSame);
}

TEST(Trace, TokensOfAnyLengthAndATupleOfOutputs) {
    struct Tokens : torch::nn::Module {
        torch::nn::Embedding words{register_module("words", torch::nn::Embedding(20, 6))};
        torch::nn::Embedding places{register_module("places", torch::nn::Embedding(16, 6))};
        torch::nn::LayerNorm norm{register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({6})))};
        std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& ids) {
            const auto x = norm(words(ids) + places(torch::arange(ids.size(1))));
            const auto used = (ids != 0).to(x.dtype()).unsqueeze(2);
            return {(x * used).sum(1) / used.sum(1), x.reshape({ids.size(0) * ids.size(1), 6})};
        }
    };
    auto net = std::make_shared<Tokens>();
    const auto ids = [](int64_t batch, int64_t length) {
        return (at::arange(batch * length) * 7).remainder(20).reshape({batch, length});
    };
    TraceOptions options;
    options.other = {ids(3, 9)};
    const auto model = trace(
        net, [&](const Inputs& inputs) -> c10::IValue { return net->forward(inputs[0].toTensor()); }, {ids(2, 5)},
        options);
    torch::NoGradGuard no_grad;
    for (const auto& x : {ids(1, 4), ids(5, 16)}) {
        const auto [sentences, tokens] = net->forward(x);
        const auto found = all_tensors(model.forward({x}));
        ASSERT_EQ(found.size(), 2u);
        EXPECT_LE(max_difference(found[0], sentences), kSame);
        EXPECT_LE(max_difference(found[1], tokens), kSame);
    }
}

TEST(Trace, SizesOnRequestStayThoseOfTheExample) {
    auto net = std::make_shared<torch::nn::Module>("Graph");
    const auto run = [](const Inputs& inputs) -> c10::IValue {
        const auto x = inputs[0].toTensor();  // [nodes, features], with an adjacency of a fixed number of nodes
        return at::matmul(at::eye(3), x);
    };
    EXPECT_ERROR(trace(net, run, {sine({3, 2})}), InvalidArgument, "fixed_sizes");
    TraceOptions options;
    options.fixed_sizes = true;
    const auto x = sine({3, 2});
    EXPECT_LE(max_difference(trace(net, run, {x}, options).forward({x}).toTensor(), x), kSame);
}

TEST(Trace, ATensorRegisteredTwiceIsOneTensor) {
    struct Tied : torch::nn::Module {
        torch::nn::Linear in{register_module("in", torch::nn::Linear(4, 4))};
        Tied() { register_module("out", in); }
        at::Tensor forward(const at::Tensor& x) { return in(torch::tanh(in(x))); }
    };
    auto net = std::make_shared<Tied>();
    const auto model = trace(
        net, [&](const Inputs& inputs) -> c10::IValue { return net->forward(inputs[0].toTensor()); }, {sine({2, 4})});
    EXPECT_TRUE(get_attribute(model, "in.weight").toTensor().is_same(get_attribute(model, "out.weight").toTensor()));
}

TEST(Trace, RefusesWhatATraceCannotHold) {
    auto net = std::make_shared<torch::nn::Module>("Net");
    const auto x = sine({2, 4});
    const auto weight = sine({4, 4}).requires_grad_();
    EXPECT_ERROR(trace(net, [&](const Inputs& i) -> c10::IValue { return at::mm(i[0].toTensor(), weight); }, {x}),
                 InvalidArgument, "register_parameter");
    const auto branch = [](const Inputs& inputs) -> c10::IValue {
        const auto y = inputs[0].toTensor();
        return y.sum().item<double>() > 0 ? y * 2 : y;
    };
    EXPECT_ERROR(trace(net, branch, {x}), InvalidArgument, "aten::item");
    TraceOptions fixed;
    fixed.fixed_values = true;
    EXPECT_LE(max_difference(trace(net, branch, {x.abs()}, fixed).forward({-x.abs()}).toTensor(), -2 * x.abs()), 0);
    const auto by_size = [](const Inputs& inputs) -> c10::IValue {
        const auto y = inputs[0].toTensor();
        return y.size(0) > 2 ? y.relu() : y.tanh();
    };
    EXPECT_ERROR(trace(net, by_size, {x}), UnsupportedModel, "other operators");
    const auto scaled = [](const Inputs& inputs) -> c10::IValue {
        const auto y = inputs[0].toTensor();
        return y * (1.0 / static_cast<double>(y.size(0)));
    };
    EXPECT_ERROR(trace(net, scaled, {x}), UnsupportedModel, "aten::mul");
    const auto random = [](const Inputs& inputs) -> c10::IValue { return at::rand_like(inputs[0].toTensor()); };
    EXPECT_ERROR(trace(net, random, {x}), UnsupportedModel, "random");
    EXPECT_ERROR(trace(net, branch, {int64_t{3}}), InvalidArgument, "no tensor");
    EXPECT_ERROR(trace(net,
                       [](const Inputs& i) -> c10::IValue {
                           return at::mm(i[0].toTensor(), at::ones({3, 3}));
                       },
                       {x}),
                 InvalidArgument, "fails on the example");
}

TEST(CopyBack, BringsTrainedTensorsIntoTheModuleByName) {
    auto net = std::make_shared<Net>();
    const auto model = trace(net, runner(net), {sine({2, 3, 8, 8})});
    const auto module = trainable(model);
    module->train(true);
    const auto x = sine({4, 3, 8, 8}, 1.7);
    module->forward({x}).square().mean().backward();
    {
        torch::NoGradGuard no_grad;
        for (auto& [name, parameter] : module->parameters()) parameter.sub_(parameter.grad(), 0.1);
    }
    module->train(false);
    net->eval();
    torch::NoGradGuard no_grad;
    const auto expected = module->forward({x});
    EXPECT_GT(max_difference(net->forward(x), expected), 1e-3);
    copy_back(*module, *net);
    EXPECT_LE(max_difference(net->forward(x), expected), kSame);

    auto folded = std::make_shared<Net>();
    folded->register_parameter("gain", sine({2}));
    EXPECT_ERROR(copy_back(model, *folded), InvalidArgument, "there is no gain");
    struct Other : torch::nn::Module {
        Other() { register_module("head", torch::nn::Linear(3, 5)); }
    } other;
    EXPECT_ERROR(copy_back(model, other), InvalidArgument, "head.weight has shape");
}

}  // namespace
}  // namespace coppice
