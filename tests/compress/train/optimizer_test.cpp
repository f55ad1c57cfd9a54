#include "models.h"
#include "reference/optimizers.h"

namespace coppice::testing {
namespace {

struct Problem {
    at::Tensor inputs = sine({6, 5}).to(at::kDouble), targets = sine({6, 2}, 3).to(at::kDouble),
               initial = sine({5, 2}, 0.7).to(at::kDouble);
};

/// Gradient of mean((x w - y)^2) over all 12 outputs, in plain loops; w row-major [5, 2].
std::vector<double> gradient(const Problem& p, const std::vector<double>& w) {
    std::vector<double> g(10, 0.0);
    for (int n = 0; n < 6; ++n)
        for (int o = 0; o < 2; ++o) {
            double error = -p.targets[n][o].item<double>();
            for (int i = 0; i < 5; ++i) error += p.inputs[n][i].item<double>() * w[2 * i + o];
            for (int i = 0; i < 5; ++i) g[2 * i + o] += 2.0 / 12 * error * p.inputs[n][i].item<double>();
        }
    return g;
}

std::vector<double> flat(const at::Tensor& tensor) {
    const auto values = tensor.detach().to(at::kDouble).contiguous();
    return {values.data_ptr<double>(), values.data_ptr<double>() + values.numel()};
}

std::vector<double> train(const Problem& p, TrainOptions options) {
    const auto module = std::make_shared<LinearModule>(p.initial.clone());
    options.epochs = 20, options.batch_size = 6, options.schedule = "constant";
    Trainer(options).fit(*trainable_of(module), *tensor_dataset({p.inputs}, p.targets, "problem"),
                         *mean_squared_error());
    return flat(module->weight);
}

template <typename Reference>
std::vector<double> expected(const Problem& p, Reference reference, double lr) {
    auto w = flat(p.initial);
    for (int step = 0; step < 20; ++step) reference.step(w, gradient(p, w), lr);
    return w;
}

void expect_close(const std::vector<double>& a, const std::vector<double>& b) {
    ASSERT_EQ(a.size(), b.size());
    // float64 throughout; 20 steps of sums in another order
    for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 1e-10) << i;
}

}  // namespace

TEST(Sgd, FollowsNesterovsMomentumInPlainLoops) {
    TrainOptions options;
    options.optimizer = "sgd", options.lr = 0.05, options.momentum = 0.9, options.weight_decay = 0.01;
    expect_close(train({}, options), expected({}, reference::Sgd{0.9, 0.01, {}}, 0.05));
}

TEST(Sgd, WithoutMomentumIsGradientDescent) {
    TrainOptions options;
    options.optimizer = "sgd", options.lr = 0.05, options.momentum = 0, options.weight_decay = 0;
    expect_close(train({}, options), expected({}, reference::Sgd{0, 0, {}}, 0.05));
}

TEST(AdamW, FollowsThePaperInPlainLoops) {
    TrainOptions options;
    options.optimizer = "adamw", options.lr = 0.02, options.weight_decay = 0.1;
    expect_close(train({}, options), expected({}, reference::AdamW{0.1, {}, {}, 0}, 0.02));
}

TEST(WeightDecay, SparesVectorsUnlessAsked) {
    struct Net : torch::nn::Module {
        Net() {
            matrix = register_parameter("matrix", at::ones({2, 2}));
            vector = register_parameter("vector", at::ones({2}));
        }
        at::Tensor matrix, vector;
    };
    for (const bool vectors : {false, true})
        for (const char* optimizer : {"sgd", "adamw"}) {
            const auto net = std::make_shared<Net>();
            TrainOptions options;
            options.optimizer = optimizer, options.lr = 0.1, options.momentum = 0, options.weight_decay = 0.5,
            options.decay_vectors = vectors;
            options.schedule = "constant";
            // The loss gives a gradient of zero: decay alone moves the weights, by 1 - 0.1 x 0.5.
            const auto module = trainable(net, [net](const Inputs& inputs) {
                return ((net->matrix.sum() + net->vector.sum()) * 0).reshape({1, 1});
            });
            Trainer(options).fit(*module, *tensor_dataset({at::ones({1})}, at::zeros({1, 1}), "one"),
                                 *mean_squared_error());
            EXPECT_NEAR(net->matrix[0][1].item<double>(), 0.95, 1e-6) << optimizer;
            EXPECT_NEAR(net->vector[1].item<double>(), vectors ? 0.95 : 1.0, 1e-6) << optimizer;
        }
}

TEST(ClipNorm, ShortensTheGradientOfAllParametersTogether) {
    const Problem p;
    const auto full = gradient(p, flat(p.initial));
    double length = 0;
    for (const double g : full) length += g * g;
    length = std::sqrt(length);
    TrainOptions options;
    options.optimizer = "sgd", options.lr = 1, options.momentum = 0, options.weight_decay = 0, options.batch_size = 6;
    options.schedule = "constant";
    for (const double limit : {length / 4, length * 4}) {
        options.clip_norm = limit;
        const auto module = std::make_shared<LinearModule>(p.initial.clone());
        Trainer(options).fit(*trainable_of(module), *tensor_dataset({p.inputs}, p.targets, "problem"),
                             *mean_squared_error());
        const double factor = limit < length ? 0.25 : 1;
        const auto before = flat(p.initial), after = flat(module->weight);
        for (size_t i = 0; i < full.size(); ++i) EXPECT_NEAR(before[i] - after[i], factor * full[i], 1e-9);
    }
}

TEST(Optimizer, UpdatesAParameterSharedByTwoNamesOnce) {
    struct Tied : torch::nn::Module {
        Tied() {
            const auto w = at::ones({1, 1}).set_requires_grad(true);
            a = register_parameter("a", w);
            b = register_parameter("b", w);
        }
        at::Tensor a, b;
    };
    const auto net = std::make_shared<Tied>();
    TrainOptions options;
    options.lr = 0.1, options.momentum = 0, options.weight_decay = 0, options.schedule = "constant";
    // f = a x + b x = 2 w x with x = 1, y = 0: gradient of (2 w)^2 is 8 w.
    const auto module = trainable(
        net, [net](const Inputs& in) { return in[0].toTensor().matmul(net->a) + in[0].toTensor().matmul(net->b); });
    Trainer(options).fit(*module, *tensor_dataset({at::ones({1, 1})}, at::zeros({1, 1}), "one"), *mean_squared_error());
    EXPECT_NEAR(net->a.item<double>(), 0.2, 1e-6);
}

}  // namespace coppice::testing
