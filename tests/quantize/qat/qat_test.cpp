// Fake quantization against plain loops, and the way from a float model through training to int8 or simulated.
#include <torch/nn/modules/linear.h>

#include <coppice/qat.h>

#include <fstream>
#include <limits>
#include <map>

#include "../layer_check.h"
#include "reference/qat.h"
#include "support/warnings.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

std::vector<double> doubles(const at::Tensor& tensor) {
    const auto flat = tensor.detach().to(at::kDouble).contiguous();
    return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

void expect_near(const std::vector<double>& found, const std::vector<double>& expected, double tolerance) {
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], tolerance) << i;
}

/// Irregular enough that no value lies at a tie or at an end of the range.
at::Tensor values_of(at::IntArrayRef shape) {
    return sine(shape, 1.3) + 0.37 * sine(shape, 0.9).square();
}

at::Tensor named(FakeQuantize& module, const std::string& name) {
    for (const auto& parameter : module->named_parameters())
        if (parameter.key() == name) return parameter.value();
    return {};
}

constexpr double kSums = 1e-5;  // sums of a few dozen float32 products of size 1

TEST(Lsq, GradientsOfAnActivationAreThoseOfThePlainLoop) {
    for (const bool negative : {false, true}) {
        FakeQuantizeOptions options;
        options.bits = 3;
        options.negative = negative;
        FakeQuantize module(options);
        const auto x = values_of({4, 3, 5}).requires_grad_();
        const auto g = sine({4, 3, 5}, 0.7);
        auto y = module->forward(x);
        {
            torch::NoGradGuard no_grad;
            named(module, "learned").fill_(0.23);
        }
        y = module->forward(x);
        y.backward(g);
        const auto expected =
            step_loop(doubles(x), doubles(g), 0.23, 0, negative ? -4 : 0, negative ? 3 : 7, /*of one example*/ 15);
        expect_near(doubles(y), expected.values, 1e-6);
        expect_near(doubles(x.grad()), expected.by_value, 0);
        EXPECT_NEAR(named(module, "learned").grad().item<double>(), expected.by_scale, kSums);
    }
}

TEST(Lsq, EveryChannelOfAWeightHasItsOwnGradient) {
    for (const int64_t channel : {0, 1}) {
        auto options = weights_of(4, channel == 0 ? 3 : 5);
        options.channel = channel;
        FakeQuantize module(options);
        const auto w = values_of({3, 5, 2}).requires_grad_();
        const auto g = sine({3, 5, 2}, 0.7);
        module->start(w);
        {
            torch::NoGradGuard no_grad;
            named(module, "learned").mul_(0.61);
        }
        const auto y = module->forward(w);
        y.backward(g);
        for (int64_t c = 0; c < options.channels; ++c) {
            const auto part = doubles(w.select(channel, c)), gradient = doubles(g.select(channel, c));
            const double scale = module->scale()[c].item<double>();
            const auto expected = step_loop(part, gradient, scale, 0, -7, 7, static_cast<double>(part.size()));
            expect_near(doubles(y.select(channel, c)), expected.values, 1e-6);
            expect_near(doubles(w.grad().select(channel, c)), expected.by_value, 0);
            EXPECT_NEAR(named(module, "learned").grad()[c].item<double>(), expected.by_scale, kSums);
        }
    }
}

/// Squared error of rounding `values` to multiples of `scale`, lowest to highest of them.
double rounding_error(const std::vector<double>& values, double scale, double lowest, double highest) {
    double error = 0;
    for (const double value : values) {
        const double rounded = std::clamp(std::nearbyint(value / scale), lowest, highest) * scale;
        error += (value - rounded) * (value - rounded);
    }
    return error;
}

double least_rounding_error(const std::vector<double>& values, double lowest, double highest) {
    double largest = 0;
    for (const double value : values) largest = std::max(largest, std::abs(value));
    double least = std::numeric_limits<double>::infinity();
    for (int i = 1; i <= 1000; ++i)
        least = std::min(least, rounding_error(values, largest / highest * i / 1000, lowest, highest));
    return least;
}

TEST(Lsq, StartsWhereRoundingErrsLeast) {
    torch::manual_seed(3);
    const auto dense = at::randn({4000});
    const auto sparse = at::where(at::rand({4000}) < 0.8, at::zeros({4000}), dense.abs());  // as behind a ReLU
    for (const int64_t bits : {2, 4, 8}) {
        FakeQuantizeOptions options;
        options.bits = bits;
        FakeQuantize activation(options);
        activation->start(sparse);
        const double levels = std::pow(2, bits) - 1, half = std::pow(2, bits - 1) - 1;
        EXPECT_LE(rounding_error(doubles(sparse), activation->scale().item<double>(), 0, levels),
                  1.1 * least_rounding_error(doubles(sparse), 0, levels))
            << bits;
        FakeQuantize weight(weights_of(bits, 2));
        const auto w = at::stack({dense, 0.01 * dense});
        weight->start(w);
        for (int64_t c = 0; c < 2; ++c)
            EXPECT_LE(rounding_error(doubles(w[c]), weight->scale()[c].item<double>(), -half, half),
                      1.1 * least_rounding_error(doubles(w[c]), -half, half))
                << bits;
    }
}

TEST(LsqPlus, LearnsScaleAndOffsetByThePlainLoopsGradients) {
    FakeQuantizeOptions options;
    options.bits = 3;
    options.symmetric = false;
    options.quantizer = lsq_plus();
    FakeQuantize module(options);
    const auto x = values_of({4, 15}).requires_grad_();
    const auto g = sine({4, 15}, 0.7);
    module->start(x);
    {
        torch::NoGradGuard no_grad;
        named(module, "learned").fill_(0.21);
        named(module, "offset").fill_(-0.65);  // 3.095 steps: zero is the integer 3
    }
    const auto y = module->forward(x);
    y.backward(g);
    const auto expected = step_loop(doubles(x), doubles(g), 0.21, -3 * 0.21, 0, 7, 15);
    expect_near(doubles(y), expected.values, 1e-6);
    expect_near(doubles(x.grad()), expected.by_value, 0);
    EXPECT_NEAR(named(module, "learned").grad().item<double>(), expected.by_scale, kSums);
    EXPECT_NEAR(named(module, "offset").grad().item<double>(), expected.by_offset, kSums);
    EXPECT_EQ(module->affine().zero_point, 3);
}

/// What a range from `low` to `high` makes of the values with symmetric integers, its squared error, in plain loops.
double squared_error(const std::vector<double>& values, double scale, double lowest, double highest) {
    double sum = 0;
    for (const double x : values) {
        const double rounded = std::clamp(std::nearbyint(x / scale), lowest, highest) * scale;
        sum += (x - rounded) * (x - rounded);
    }
    return sum;
}

TEST(LsqPlus, WeightsStartAtThreeDeviations) {
    for (const int64_t bits : {2, 4, 8}) {
        auto options = weights_of(bits, 3);
        options.quantizer = lsq_plus();
        FakeQuantize module(options);
        const auto w = values_of({3, 50}) + at::tensor({0.0, 0.4, -0.8}).to(at::kFloat).reshape({3, 1});
        module->start(w);
        const double highest = static_cast<double>((int64_t{1} << (bits - 1)) - 1);
        for (int64_t c = 0; c < 3; ++c) {
            const auto row = doubles(w[c]);
            double mean = 0, variance = 0;
            for (const double value : row) mean += value / 50;
            for (const double value : row) variance += (value - mean) * (value - mean) / 50;
            // The farther of mean - 3 deviations and mean + 3 deviations, eq. 9 of the paper.
            EXPECT_NEAR(module->scale()[c].item<double>(), (std::abs(mean) + 3 * std::sqrt(variance)) / highest, 1e-5);
        }
    }
}

TEST(LsqPlus, ActivationsStartAtTheShrunkenRangeOfLeastError) {
    FakeQuantizeOptions options;
    options.bits = 3;
    options.symmetric = false;
    options.quantizer = lsq_plus();
    FakeQuantize module(options);
    auto x = values_of({400});
    x[7] = 9.0;  // covering it would cost the others more
    module->start(x);
    const auto values = doubles(x);
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    double least = 1e30, best = 0;
    for (int i = 1; i <= 40; ++i) {
        const double scale = (*high - *low) * i / 40 / 7, zero = std::nearbyint(-*low * i / 40 / scale);
        if (const double error = squared_error(values, scale, -zero, 7 - zero); error < least) {
            least = error;
            best = scale;
        }
    }
    EXPECT_LT(best, 0.9 * (*high - *low) / 7);
    EXPECT_NEAR(module->scale().item<double>(), best, 1e-5 * best);
}

TEST(Pact, StartsAtTheClippingValueOfLeastError) {
    for (const bool negative : {false, true}) {
        FakeQuantizeOptions options;
        options.bits = 3;
        options.quantizer = pact();
        FakeQuantize module(options);
        auto x = negative ? values_of({400}) : values_of({400}).abs();
        x[7] = 9.0;
        module->start(x);
        const double highest = negative ? 3 : 7, lowest = negative ? -3 : 0;
        double least = 1e30, best = 0;
        for (int i = 1; i <= 40; ++i)
            if (const double error = squared_error(doubles(x), 9.0 * i / 40 / highest, lowest, highest);
                error < least) {
                least = error;
                best = 9.0 * i / 40;
            }
        EXPECT_LT(best, 8);
        EXPECT_NEAR(named(module, "learned").item<double>(), best, 1e-5 * best) << negative;
    }
}

TEST(Pact, TheClippingValueLearnsByThePlainLoopsGradient) {
    for (const bool negative : {false, true}) {
        FakeQuantizeOptions options;
        options.bits = 4;
        options.negative = negative;
        options.quantizer = pact();
        FakeQuantize module(options);
        const auto x = values_of({4, 15}).requires_grad_();
        const auto g = sine({4, 15}, 0.7);
        module->start(x);
        {
            torch::NoGradGuard no_grad;
            named(module, "learned").fill_(0.83);
        }
        const auto y = module->forward(x);
        y.backward(g);
        const auto expected = pact_loop(doubles(x), doubles(g), 0.83, negative ? 7 : 15, negative);
        EXPECT_NE(expected.by_scale, 0);
        expect_near(doubles(x.grad()), expected.by_value, 0);
        EXPECT_NEAR(named(module, "learned").grad().item<double>(), expected.by_scale, kSums);
        expect_near(doubles(y), expected.values, 1e-6);
    }
}

TEST(Pact, InEightBitsTheLowerEndIsInt8sLeastIntegerAndTheGradientThatOfWhatIsComputed) {
    FakeQuantizeOptions options;
    options.negative = true;
    options.quantizer = pact();
    FakeQuantize module(options);
    module->start(at::tensor({-1.0f, 0.5f}));
    const auto a = named(module, "learned");
    const auto x = at::tensor({-3.0f, 0.25f, 2.0f});
    const auto g = at::tensor({0.7f, 5.0f, 0.4f});
    const auto at_value = [&](double clip) {
        torch::NoGradGuard no_grad;
        a.fill_(clip);
        return module->forward(x);
    };
    const auto y = at_value(1.0);
    EXPECT_NEAR(y[0].item<double>(), -128.0 / 127, 1e-6);
    EXPECT_NEAR(y[2].item<double>(), 1, 1e-6);
    // What is clipped moves in proportion to a.
    const double difference = ((at_value(2.0) - y) * g)[0].item<double>() + ((at_value(2.0) - y) * g)[2].item<double>();
    at_value(1.0);
    module->forward(x).backward(g);
    EXPECT_NEAR(a.grad().item<double>(), difference, 1e-5);
}

TEST(MinMaxRange, FollowsTheBatchesUntilItIsFrozen) {
    FakeQuantizeOptions options;
    options.symmetric = false;
    options.quantizer = minmax_range(0.25);
    options.watch_batches = 2;
    FakeQuantize module(options);
    module->start(at::tensor({-1.0f, 3.0f}));
    module->train();
    const auto batch = at::tensor({-2.0f, 5.0f});
    module->forward(batch);
    EXPECT_NEAR(module->scale().item<double>(), (0.75 * 4 + 0.25 * 7) / 255, 1e-7);
    module->forward(batch);
    const double second = 0.75 * (0.75 * 4 + 0.25 * 7) + 0.25 * 7;
    EXPECT_NEAR(module->scale().item<double>(), second / 255, 1e-7);
    module->forward(batch);
    EXPECT_NEAR(module->scale().item<double>(), second / 255, 1e-7);
    module->eval();
    EXPECT_LE(max_difference(module->forward(at::zeros({3})), at::zeros({3})), 0);
}

TEST(MinMaxRange, ABatchOfZerosPullsTheRangeTowardsZeroAndNotToOne) {
    for (const bool symmetric : {true, false}) {
        FakeQuantizeOptions options;
        options.symmetric = symmetric;
        options.quantizer = minmax_range(0.25);
        FakeQuantize module(options);
        module->start(at::tensor({0.0f, 4.0f}));
        module->train();
        module->forward(at::zeros({5}));
        EXPECT_NEAR(255 * module->scale().item<double>(), 3, 1e-5);
        // Where zeros came first the range is that of the first values that are none.
        FakeQuantize late(options);
        late->train();
        late->forward(at::zeros({5}));
        EXPECT_EQ(late->scale().item<double>(), 1);
        EXPECT_EQ(late->affine().zero_point, 0);
        late->forward(at::tensor({0.0f, 4.0f}));
        EXPECT_NEAR(255 * late->scale().item<double>(), 4, 1e-5);
    }
}

TEST(MinMaxRange, WeightsAreRoundedByTheirRangeOfNowAfterTheLastStepToo) {
    auto options = weights_of(8, 2);
    options.quantizer = minmax_range();
    options.watch_batches = 3;
    FakeQuantize module(options);
    const auto w = values_of({2, 6});
    module->train();
    module->forward(w);
    module->eval();
    const auto wider = module->forward(2 * w);
    EXPECT_TRUE(at::allclose(module->scale(), (2 * w).abs().amax(1) / 127));
    EXPECT_LE(max_difference(wider, 2 * w), 0.501 * module->scale().max().item<double>());
    module->freeze();
    module->forward(4 * w);
    EXPECT_TRUE(at::allclose(module->scale(), (2 * w).abs().amax(1) / 127));
}

TEST(Lsq, AScaleThatTrainingDrivesPastZeroKeepsItsLayerAlive) {
    for (const auto& row : quantizers()) {
        Options none(row.name, std::vector<std::pair<std::string, std::string>>{});
        FakeQuantizeOptions options;
        options.bits = 4;
        options.quantizer = row.make(none);
        if (!options.quantizer->learns()) continue;
        SCOPED_TRACE(row.name);
        options.symmetric = !options.quantizer->offsets();
        FakeQuantize module(options);
        const auto x = values_of({4, 15});
        module->start(x);
        const double start = module->scale().item<double>();
        {
            torch::NoGradGuard no_grad;
            named(module, "learned").fill_(-0.3);
        }
        EXPECT_NEAR(module->scale().item<double>(), start / 16, 1e-6 * start);
        const auto y = module->forward(x);
        EXPECT_GT(y.detach().abs().max().item<double>(), 0.02 * x.abs().max().item<double>());
        y.backward(x);  // as a loss that wants more of the signal, whose gradient is negative
        EXPECT_GT(named(module, "learned").grad().item<double>(), 0);  // of -loss: the scale comes back
    }
}

class EveryQuantizer : public ::testing::TestWithParam<std::string> {
protected:
    std::shared_ptr<const Quantizer> make() const {
        Options options(GetParam(), std::vector<std::pair<std::string, std::string>>{});
        return find_entry(quantizers(), "quantizer", GetParam(), "test").make(options);
    }
};

TEST_P(EveryQuantizer, RoundsByAtMostHalfAStepAndKeepsAChannelOfZeros) {
    for (const int64_t bits : {2, 3, 4, 8}) {
        for (const double size : {1.0, 1e-6, 1e-12}) {
            SCOPED_TRACE(std::to_string(bits) + " bits, weights of " + std::to_string(size));
            auto options = weights_of(bits, 4);
            options.quantizer = make();
            FakeQuantize module(options);
            auto weight = size * values_of({4, 3, 3});
            weight[2].zero_();
            const auto rounded = module->forward(weight).detach();
            const auto scale = module->scale().reshape({4, 1, 1});
            const double highest = static_cast<double>((int64_t{1} << (bits - 1)) - 1);
            const auto clipped = at::minimum(at::maximum(weight, -scale * highest), scale * highest);
            EXPECT_TRUE(((rounded - clipped).abs() <= 0.5001 * scale).all().item<bool>());
            EXPECT_GT(rounded[0].abs().max().item<double>(), 0);
            EXPECT_TRUE(rounded[2].eq(0).all().item<bool>());
            EXPECT_GT(module->scale()[2].item<double>(), 0);
            EXPECT_LE(max_difference(module->integers(weight).to(at::kFloat) * scale, rounded), 1e-6 * size);
        }
    }
}

TEST_P(EveryQuantizer, RoundsActivationsByAtMostHalfAStepWithinItsEnds) {
    for (const int64_t bits : {2, 3, 4, 8}) {
        for (const bool negative : {false, true}) {
            for (const double size : {1.0, 1e-6}) {
                SCOPED_TRACE(std::to_string(bits) + (negative ? " bits, signed " : " bits ") + std::to_string(size));
                FakeQuantizeOptions options;
                options.bits = bits;
                options.quantizer = make();
                options.symmetric = !options.quantizer->offsets();
                FakeQuantize module(options);
                const auto x = size * (negative ? values_of({4, 15}) : values_of({4, 15}).abs());
                const auto rounded = module->forward(x).detach();
                const auto parameters = module->affine();
                const double low = -parameters.scale * static_cast<double>(parameters.zero_point);
                const double high = low + parameters.scale * static_cast<double>(module->levels() - 1);
                EXPECT_LE(max_difference(rounded, x.clamp(low, high)), 0.5001 * parameters.scale);
                EXPECT_GT(rounded.abs().max().item<double>(), 0);
                // No start throws most of the values away.
                EXPECT_LT(((x < low) | (x > high)).to(at::kFloat).mean().item<double>(), 0.5);
                EXPECT_EQ(low < 0, negative);
            }
        }
    }
}

TEST_P(EveryQuantizer, AnEmptyBatchInTrainingChangesNothingAndHasFiniteGradients) {
    FakeQuantizeOptions options;
    options.bits = 4;
    options.quantizer = make();
    options.symmetric = !options.quantizer->offsets();
    if (!options.quantizer->learns()) options.watch_batches = 2;
    FakeQuantize module(options);
    module->train();
    const auto x = values_of({4, 3});
    module->forward(x);
    const double scale = module->scale().item<double>();
    const auto empty = at::empty({0, 3}).requires_grad_();
    const auto y = module->forward(empty);
    EXPECT_EQ(y.sizes(), at::IntArrayRef({0, 3}));
    (y.sum() + module->forward(x).sum()).backward();
    for (const auto& parameter : module->parameters())
        if (parameter.grad().defined()) EXPECT_TRUE(parameter.grad().isfinite().all().item<bool>());
    EXPECT_NEAR(module->scale().item<double>(), scale, 1e-6 * scale);
}

TEST_P(EveryQuantizer, AFileHoldsAllThatItsModuleKnows) {
    FakeQuantizeOptions options;
    options.bits = 4;
    options.quantizer = make();
    options.symmetric = !options.quantizer->offsets();
    FakeQuantize module(options), other(options);
    const auto x = values_of({4, 15});
    module->forward(x);
    std::stringstream file;
    torch::save(module, file);
    torch::load(other, file);
    EXPECT_TRUE(at::equal(other->forward(0.5 * x), module->forward(0.5 * x)));
}

INSTANTIATE_TEST_SUITE_P(All, EveryQuantizer, ::testing::ValuesIn(names_of(quantizers())),
                         [](const auto& info) { return info.param; });

TEST(FakeQuantize, NamesTheOptionOutOfItsRange) {
    FakeQuantizeOptions options;
    options.bits = 9;
    EXPECT_THROW(FakeQuantize{options}, InvalidArgument);
    EXPECT_THROW(FakeQuantize(weights_of(4, 3))->forward(at::zeros({4, 2})), InvalidArgument);
}

struct Net : torch::nn::Module {
    torch::nn::Linear layer{nullptr};
    FakeQuantize weights{nullptr}, values{nullptr};
    Net() {
        layer = register_module("layer", torch::nn::Linear(6, 3));
        weights = register_module("weights", FakeQuantize(weights_of(3, 3)));
        FakeQuantizeOptions options;
        options.bits = 3;
        values = register_module("values", FakeQuantize(options));
    }
    at::Tensor forward(const at::Tensor& x) {
        return torch::linear(values->forward(x), weights->forward(layer->weight), layer->bias);
    }
};

TEST(FakeQuantize, StartsWithNumbersAndSaysSoBefore) {
    for (const auto& row : quantizers()) {
        SCOPED_TRACE(row.name);
        Options none(row.name, std::vector<std::pair<std::string, std::string>>{});
        FakeQuantizeOptions options;
        options.quantizer = row.make(none);
        FakeQuantize values(options);
        EXPECT_ERROR(values->scale(), InvalidArgument, "it has seen no values yet");
        EXPECT_ERROR(values->affine(), InvalidArgument, "it has seen no values yet");
        EXPECT_ERROR(values->levels(), InvalidArgument, "it has seen no values yet");
        // An empty batch gives an empty batch, and starts nothing.
        EXPECT_EQ(values->forward(at::empty({0, 3})).sizes(), at::IntArrayRef({0, 3}));
        EXPECT_FALSE(values->started());
        EXPECT_ERROR(values->start(at::empty({0})), InvalidArgument, "empty tensor");
        EXPECT_ERROR(values->forward(at::full({3}, std::nan(""))), InvalidArgument, "NaN or infinity");
        EXPECT_FALSE(values->started());
        const auto x = values_of({40});
        const auto rounded = values->forward(x);
        EXPECT_TRUE(values->started());
        EXPECT_LT(max_difference(rounded, x), 0.1);
        EXPECT_ERROR(values->integers(x), InvalidArgument, "only integers of symmetric weights are int8");
    }
}

TEST(FakeQuantize, ATorchNnModuleLearnsWithIt) {
    torch::manual_seed(3);
    auto net = std::make_shared<Net>();
    const auto x = values_of({64, 6}), target = at::linear(x, sine({3, 6}, 0.8));
    net->forward(x);  // scales start
    const auto module = trainable(net, [&](const Inputs& inputs) { return net->forward(inputs[0].toTensor()); });
    TrainOptions options;
    options.epochs = 8;
    options.batch_size = 8;
    options.lr = 0.05;
    options.weight_decay = 0;
    const auto before = net->values->scale().item<double>();
    const auto result = Trainer(options).fit(*module, *tensor_dataset({x}, target, "lines"), *mean_squared_error());
    EXPECT_LT(result.epochs.back().train_loss, 0.5 * result.epochs.front().train_loss);
    EXPECT_NE(net->values->scale().item<double>(), before);
}

Context small_context(const std::shared_ptr<Dataset>& data) {
    Context context;
    context.example = {sine({2, 3, 8, 8})};
    context.data.train = context.data.calibration = data;
    return context;
}

std::shared_ptr<Dataset> small_data() {
    return tensor_dataset({(at::arange(32 * 3 * 8 * 8, at::kDouble) * 0.7).sin().to(at::kFloat).reshape({32, 3, 8, 8})},
                          at::arange(32).remainder(10), "smooth images");
}

QatModel trained(const Model& model, QatOptions options) {
    const auto data = small_data();
    const auto images = data->batch({0, 1, 2, 3, 4, 5, 6, 7}).inputs;
    const auto training = prepare(model, {sine({2, 3, 8, 8})}, std::vector<Inputs>(1, images), options);
    TrainOptions settings;
    settings.epochs = 2;
    settings.batch_size = 8;
    settings.lr = 0.02;
    const auto module = training.trainable();
    Trainer(settings).fit(*module, *data, *cross_entropy());
    module->train(false);
    return training;
}

class QatOf : public ::testing::TestWithParam<std::string> {
protected:
    QatOptions options(int64_t bits) const {
        Options none(GetParam(), std::vector<std::pair<std::string, std::string>>{});
        QatOptions options;
        options.weight_bits = options.activation_bits = bits;
        options.quantizer = find_entry(quantizers(), "quantizer", GetParam(), "test").make(none);
        return options;
    }
};

TEST_P(QatOf, EightBitsTrainWhatTheInt8ModelComputes) {
    for (const auto& [per_channel, train_norms] : {std::pair{true, false}, {false, false}, {true, true}}) {
        auto settings = options(8);
        settings.per_channel = per_channel;
        settings.train_norms = train_norms;
        const auto training = trained(residual_model(), settings);
        torch::NoGradGuard no_grad;
        const Inputs inputs = {sine({4, 3, 8, 8}, 1.1)};
        const auto plan = training.trained_plan();
        // The plan's own simulation is another walk over other parameters: those that the kernels get.
        EXPECT_LE(max_difference(fake_quantized(plan, inputs).toTensor(), training.forward(inputs).toTensor()), 1e-6);
        const auto int8 = convert(training);
        const auto checked = testing::check_every_layer(int8, inputs);
        EXPECT_GT(checked["quantized::conv2d"] + checked["quantized::conv2d_relu"], 0);
        EXPECT_LE(checked.worst_quanta, 1.01) << checked.worst;
    }
}

/// The largest difference between an int8 model's output and the fake-quantized model's, in steps of that output (of
/// 1/255 of its largest value where the last layer gives float), and the share of outputs that are another integer.
std::pair<double, double> output_quanta(const QatModel& training, const Inputs& inputs) {
    torch::NoGradGuard no_grad;
    double step = 0;
    NodeHooks hooks;
    hooks.after = [&](const torch::jit::Node*, std::vector<c10::IValue>& outputs) {
        if (outputs[0].isTensor() && outputs[0].toTensor().is_quantized()) step = outputs[0].toTensor().q_scale();
    };
    const auto int8 = run_nodes(convert(training), inputs, hooks).toTensor();
    if (step == 0) step = int8.abs().max().item<double>() / 255;
    const auto apart = ((int8 - training.forward(inputs).toTensor()) / step).abs();
    return {apart.max().item<double>(), apart.gt(0.5).to(at::kDouble).mean().item<double>()};
}

TEST_P(QatOf, OneInt8LayerGivesTheFakeQuantizedOutputUpToAStep) {
    const auto conv = build_model({{"c.weight", sine({4, 3, 3, 3}, 0.4)}, {"c.bias", sine({4}, 0.2)}},
                                  "def forward(self, x):\n"
                                  "    y = torch.relu(torch.conv2d(x, self.c.weight, self.c.bias))\n"
                                  "    return y.flatten(1)\n");
    const auto linear = build_model({{"f.weight", sine({10, 192}, 0.1)}, {"f.bias", sine({10}, 0.2)}},
                                    "def forward(self, x):\n"
                                    "    return torch.linear(x.flatten(1), self.f.weight, self.f.bias).relu()\n");
    for (const auto& model : {conv, linear})
        for (const bool per_channel : {true, false}) {
            auto settings = options(8);
            settings.per_channel = per_channel;
            const auto [most, share] = output_quanta(trained(model, settings), {sine({4, 3, 8, 8}, 1.1)});
            EXPECT_LE(most, 1.01);  // a tie may go either way; float32
            EXPECT_LT(share, 0.02);
        }
}

TEST_P(QatOf, AnInt8NetworkGivesTheFakeQuantizedOutputUpToAFewSteps) {
    const auto [most, share] = output_quanta(trained(residual_model(), options(8)), {sine({4, 3, 8, 8}, 1.1)});
    // Each of five layers and the sum may be a step off at a tie, which the layers behind pass on.
    EXPECT_LE(most, 3.01);
    EXPECT_LT(share, 0.25);
}

TEST_P(QatOf, ARangeThatTrainingWidensDoesNotUndoAClamp) {
    // LSQ begins at a multiple of the mean: far beyond the bound that most values lie at here.
    const auto model = build_model({{"a.weight", sine({8, 3, 3, 3}, 9)}, {"b.weight", sine({4, 8, 3, 3}, 0.4)}},
                                   "def forward(self, x):\n"
                                   "    x = torch.relu6(torch.conv2d(x, self.a.weight))\n"
                                   "    return torch.hardtanh(torch.conv2d(x, self.b.weight), -0.5, 0.5).flatten(1)\n");
    const auto images = small_data()->batch({0, 1, 2, 3, 4, 5, 6, 7}).inputs;
    const auto training = prepare(model, {sine({2, 3, 8, 8})}, std::vector<Inputs>(1, images), options(8));
    const auto [most, share] = output_quanta(training, {sine({4, 3, 8, 8}, 1.1)});
    EXPECT_LE(most, 2.01);  // a layer before may be a step off at a tie
    EXPECT_LT(share, 0.1);
}

TEST_P(QatOf, WeightsOfFewBitsInAnInt8ModelAreCalledSimulated) {
    auto settings = options(8);
    settings.weight_bits = 4;
    const auto training = trained(residual_model(), settings);
    EXPECT_FALSE(training.simulated());  // convert() gives int8 operators
    int few = 0, eight = 0;
    for (const auto& layer : training.layers({{sine({4, 3, 8, 8})}})) {
        few += layer.precision == "int8 (simulated W4A8)";
        eight += layer.precision == "int8" && layer.parameters > 0;
    }
    EXPECT_EQ(few, 3);
    EXPECT_EQ(eight, 2);  // the first and the last layer
}

TEST_P(QatOf, FewerBitsGiveAModelOfStockOperatorsThatComputesWhatWasTrained) {
    auto settings = options(3);
    settings.train_norms = true;
    settings.norm_batches = 6;
    const auto training = trained(residual_model(), settings);
    EXPECT_TRUE(training.simulated());
    const auto simulated = convert(training);
    TemporaryFolder folder;
    simulated.save(folder / "model.pt");
    auto loaded = torch::jit::load((folder / "model.pt").string());
    torch::NoGradGuard no_grad;
    const Inputs inputs = {sine({4, 3, 8, 8}, 1.1)};
    EXPECT_LE(max_difference(first_tensor(loaded.forward(inputs)), training.forward(inputs).toTensor()), 1e-6);
    int roundings = 0;
    for (const auto* node : all_nodes(*simulated.graph())) {
        const std::string op = node->kind().toQualString();
        EXPECT_EQ(op.rfind("quantized::", 0), std::string::npos);
        roundings += op == "aten::fake_quantize_per_tensor_affine";
    }
    EXPECT_GT(roundings, 3);
    EXPECT_THROW(training.trained_plan(), InvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(All, QatOf, ::testing::ValuesIn(names_of(quantizers())),
                         [](const auto& info) { return info.param; });

TEST(Qat, InnerWeightsHaveFewValuesAndTheFirstAndLastLayerEightBits) {
    QatOptions options;
    options.weight_bits = options.activation_bits = 2;
    const auto training = trained(residual_model(), options);
    int wide = 0, narrow = 0;
    for (const auto& [name, quantizer] : training.quantizers()) {
        if (!quantizer->options().weight) continue;
        (quantizer->options().bits == 8 ? wide : narrow) += 1;
    }
    EXPECT_EQ(wide, 2);
    EXPECT_GT(narrow, 0);
    int coarse = 0;
    for (const auto& tensor : named_tensors(convert(training)))
        if (tensor.tensor.dim() == 4 && std::get<0>(at::_unique(tensor.tensor[0])).numel() <= 3) ++coarse;
    EXPECT_EQ(coarse, narrow);  // -1, 0 and 1 times the channel's scale
}

/// A convolution with a bias of its own, its batch norm, and one training batch.
struct OneNorm {
    std::vector<std::pair<std::string, at::Tensor>> tensors = {
        {"c.weight", sine({4, 3, 3, 3}, 0.4)}, {"c.bias", sine({4}, 0.3)},
        {"bn.weight", 1 + sine({4}, 0.4)},     {"bn.bias", sine({4}, 0.2)},
        {"bn.running_mean", sine({4}, 0.5)},   {"bn.running_var", 1 + sine({4}, 0.3)}};
    Model model() const {
        return build_model(tensors,
                           "def forward(self, x):\n    return torch.batch_norm(torch.conv2d(x, self.c.weight, "
                           "self.c.bias), self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var, "
                           "self.training, 0.1, 1e-3, True)\n");
    }
    at::Tensor of(const std::string& name) const {
        for (const auto& [key, tensor] : tensors)
            if (key == name) return tensor;
        return {};
    }
};

at::Tensor found(const std::vector<std::pair<std::string, at::Tensor>>& list, const std::string& name) {
    for (const auto& [key, tensor] : list)
        if (key == name) return tensor;
    throw std::runtime_error("no tensor " + name);
}

/// @param name  empty: that of the model's input
FakeQuantize quantizer_of(const QatModel& training, const std::string& name) {
    for (const auto& [key, quantizer] : training.quantizers())
        if (name.empty() ? key.find('.') == std::string::npos || key.rfind("x", 0) == 0 : key == name) return quantizer;
    throw std::runtime_error("no quantizer " + name);
}

TEST(Qat, TheNoiseOfALayerIsThatOfItsOwnWeightsAndScales) {
    QatOptions options;
    options.weight_bits = options.activation_bits = options.first_last_bits = 4;
    const auto x = values_of({2, 3, 8, 8});
    const std::vector<Inputs> batches(1, Inputs{x});
    const auto training = prepare(OneNorm().model(), {x}, batches, options);
    auto of_input = quantizer_of(training, "");
    {
        torch::NoGradGuard no_grad;
        named(of_input, "learned").mul_(0.2);  // as training may, so that some of the input is clipped
    }
    const auto layers = training.layers(batches);
    ASSERT_EQ(layers.size(), 1u);
    EXPECT_EQ(layers[0].precision, "float32, simulated W4A4");

    at::Tensor weight, bias;
    for (const auto& entry : named_tensors(training.model())) {
        if (entry.tensor.dim() == 4) weight = entry.tensor.detach();
        if (entry.name.find("bias") != std::string::npos && entry.tensor.numel() == 4) bias = entry.tensor.detach();
    }
    FakeQuantize of_weight = nullptr;
    for (const auto& [name, quantizer] : training.quantizers())
        if (quantizer->options().weight) of_weight = quantizer;
    const double scale = of_input->scale().item<double>();
    torch::NoGradGuard no_grad;
    const auto exact = at::conv2d(x, weight, bias);
    const auto rounded = at::conv2d(of_input->forward(x), of_weight->forward(weight), bias);
    double signal = 0, noise = 0, clipped = 0;
    const auto y = doubles(exact), z = doubles(rounded), inputs = doubles(x);
    for (size_t i = 0; i < y.size(); ++i) {
        signal += y[i] * y[i];
        noise += (y[i] - z[i]) * (y[i] - z[i]);
    }
    for (const double value : inputs) clipped += value < -8.5 * scale || value > 7.5 * scale;
    EXPECT_NEAR(layers[0].sqnr_db, 10 * std::log10(signal / noise), 1e-3);
    EXPECT_GT(clipped, 0);
    EXPECT_EQ(layers[0].clipped_ratio, clipped / static_cast<double>(inputs.size()));
    EXPECT_NEAR(layers[0].range.low, -8 * scale, 1e-9);
    EXPECT_NEAR(layers[0].range.high, 7 * scale, 1e-9);
}

TEST(QatNorms, ABatchIsNormalisedByItsOwnMomentsAndTheRunningOnesFollow) {
    const OneNorm net;
    QatOptions options;
    options.train_norms = true;
    options.quantizer = minmax_range();
    options.watch_batches = 1;
    const auto x = values_of({6, 3, 8, 8});
    const auto training = prepare(net.model(), {x}, {{x}}, options);
    const auto module = training.trainable();
    torch::NoGradGuard no_grad;
    module->train(true);
    const auto y = module->forward({x});
    // By plain sums: the rounded weight is that of the running statistics before this batch.
    auto rounded_x = quantizer_of(training, ""), rounded_w = quantizer_of(training, "c.weight");
    const auto s = net.of("bn.weight") / (net.of("bn.running_var") + 1e-3).sqrt();
    rounded_x->eval();
    rounded_w->eval();
    const auto scaled = rounded_w->forward(net.of("c.weight") * s.reshape({4, 1, 1, 1}));
    const auto z =
        at::conv2d(rounded_x->forward(x), scaled) / s.reshape({1, 4, 1, 1}) + net.of("c.bias").reshape({1, 4, 1, 1});
    const auto output = quantizer_of(training, "c.output");
    const double step = output->scale().item<double>();
    for (int64_t c = 0; c < 4; ++c) {
        const auto row = doubles(z.select(1, c)), result = doubles(y.select(1, c));
        double mean = 0, variance = 0;
        for (const double value : row) mean += value / static_cast<double>(row.size());
        for (const double value : row) variance += std::pow(value - mean, 2) / static_cast<double>(row.size());
        const double unbiased = variance * static_cast<double>(row.size()) / static_cast<double>(row.size() - 1);
        const double gamma = net.of("bn.weight")[c].item<double>(), beta = net.of("bn.bias")[c].item<double>();
        // Ends of the range, which belong to the running statistics, may clip what this batch gives.
        const auto parameters = output->affine();
        const double low = -step * static_cast<double>(parameters.zero_point);
        const double high = low + step * static_cast<double>(output->levels() - 1);
        for (size_t i = 0; i < row.size(); ++i) {
            const double exact = gamma * (row[i] - mean) / std::sqrt(variance + 1e-3) + beta;
            EXPECT_NEAR(result[i], std::clamp(exact, low, high), 0.51 * step);
        }
        EXPECT_NEAR(found(module->buffers(), "bn.running_mean")[c].item<double>(),
                    0.9 * net.of("bn.running_mean")[c].item<double>() + 0.1 * mean, 1e-5);
        EXPECT_NEAR(found(module->buffers(), "bn.running_var")[c].item<double>(),
                    0.9 * net.of("bn.running_var")[c].item<double>() + 0.1 * unbiased, 1e-5);
    }
}

TEST(QatNorms, AnEmptyBatchLeavesTheStatisticsAlone) {
    QatOptions options;
    options.train_norms = true;
    const auto x = values_of({6, 3, 8, 8});
    const OneNorm net;
    const auto training = prepare(net.model(), {x}, {{x}}, options);
    const auto module = training.trainable();
    module->train(true);
    const auto y = module->forward({at::empty({0, 3, 8, 8})});
    EXPECT_EQ(y.size(0), 0);
    EXPECT_TRUE(at::equal(found(module->buffers(), "bn.running_mean"), net.of("bn.running_mean")));
    EXPECT_TRUE(at::equal(found(module->buffers(), "bn.running_var"), net.of("bn.running_var")));
    (y.sum() + module->forward({x}).sum()).backward();
    for (const auto& [name, parameter] : module->parameters())
        if (parameter.grad().defined()) EXPECT_TRUE(parameter.grad().isfinite().all().item<bool>()) << name;
}

TEST(QatNorms, TrainWeightScaleAndShiftUnderTheirNamesAndNotTheFoldedLayer) {
    const OneNorm net;
    QatOptions options;
    options.train_norms = true;
    const auto x = values_of({6, 3, 8, 8});
    const auto training = prepare(net.model(), {x}, {{x}}, options);
    const auto module = training.trainable();
    const auto parameters = module->parameters();
    for (const auto& name : {"c.weight", "c.bias", "bn.weight", "bn.bias"}) {
        int count = 0;
        for (const auto& entry : parameters) count += entry.first == name;
        EXPECT_EQ(count, 1) << name;
        EXPECT_TRUE(at::equal(found(parameters, name).detach(), net.of(name))) << name;  // unfolded
    }
    module->train(true);
    module->forward({x}).square().sum().backward();
    for (const auto& name : {"c.weight", "bn.weight", "bn.bias"}) {
        const auto gradient = found(parameters, name).grad();
        ASSERT_TRUE(gradient.defined()) << name;
        EXPECT_GT(gradient.abs().max().item<double>(), 0) << name;
    }
}

TEST(QatNorms, OnceFrozenTrainingComputesWhatIsConvertedAndStatisticsStay) {
    QatOptions options;
    options.train_norms = true;
    options.norm_batches = 2;
    options.weight_bits = options.activation_bits = 4;
    const auto x = values_of({6, 3, 8, 8});
    const auto training = prepare(residual_model(), {x}, {{x}}, options);
    const auto module = training.trainable();
    torch::NoGradGuard no_grad;
    module->train(true);
    const auto by_batch = module->forward({x});
    module->forward({x});
    std::vector<at::Tensor> before;
    for (const auto& entry : module->buffers())
        if (entry.first.find("running") != std::string::npos) before.push_back(entry.second.clone());
    ASSERT_EQ(before.size(), 8u);
    const auto frozen = module->forward({x});
    size_t i = 0;
    for (const auto& entry : module->buffers())
        if (entry.first.find("running") != std::string::npos) EXPECT_TRUE(at::equal(entry.second, before[i++]));
    EXPECT_GT(max_difference(by_batch, frozen), 0.01);
    EXPECT_LE(max_difference(convert(training).forward({x}).toTensor(), frozen), 1e-6);
    module->train(false);
    EXPECT_LE(max_difference(module->forward({x}), frozen), 1e-6);
}

TEST(QatNorms, AChannelThatIsSwitchedOffStaysFinite) {
    OneNorm net;
    for (auto& [name, tensor] : net.tensors)
        if (name == "bn.weight") tensor = at::tensor({1.0f, 0.0f, 0.5f, -1.0f});
    QatOptions options;
    options.train_norms = true;
    const auto x = values_of({6, 3, 8, 8});
    const auto training = prepare(net.model(), {x}, {{x}}, options);
    const auto module = training.trainable();
    module->train(true);
    const auto y = module->forward({x});
    y.sum().backward();
    EXPECT_TRUE(y.isfinite().all().item<bool>());
    for (const auto& entry : module->parameters())
        if (entry.second.grad().defined())
            EXPECT_TRUE(entry.second.grad().isfinite().all().item<bool>()) << entry.first;
    const double step = quantizer_of(training, "c.output")->scale().item<double>();
    EXPECT_NEAR(y.select(1, 1).max().item<double>(), net.of("bn.bias")[1].item<double>(), 0.51 * step);
}

/// A batch norm of four channels under `name`.
std::vector<std::pair<std::string, at::Tensor>> norm_of(const std::string& name, double phase) {
    const auto wave = [&](double scale) { return (at::arange(4) + phase).sin().to(at::kFloat) * scale; };
    return {{name + ".weight", 1 + wave(0.4)},
            {name + ".bias", wave(0.2)},
            {name + ".running_mean", wave(0.5)},
            {name + ".running_var", 1.2 + wave(0.3)}};
}

std::string norm_call(const std::string& name, const std::string& input) {
    return "torch.batch_norm(" + input + ", self." + name + ".weight, self." + name + ".bias, self." + name +
           ".running_mean, self." + name + ".running_var, self.training, 0.1, 1e-3, True)";
}

Model model_with(std::vector<std::pair<std::string, at::Tensor>> tensors,
                 const std::vector<std::pair<std::string, double>>& norms, const std::string& expression) {
    for (const auto& [name, phase] : norms)
        for (auto& entry : norm_of(name, phase)) tensors.push_back(entry);
    return build_model(tensors, "def forward(self, x):\n    return " + expression + "\n");
}

/// Prepared with batch norms that train, and what its norms() say: "trained" or the reason why not.
std::pair<QatModel, std::map<std::string, std::string>> with_norms(const Model& model, const at::Tensor& x) {
    QatOptions options;
    options.train_norms = true;
    options.quantizer = minmax_range();
    const auto training = prepare(model, {x}, {{x}}, options);
    std::map<std::string, std::string> said;
    for (const auto& change : training.norms())
        said[change.layer] = change.action == "trained" ? change.action : change.reason;
    return {training, said};
}

/// What the float model gives, in units of its largest value.
double distance_from_float(const QatModel& training, const Model& model, const at::Tensor& x) {
    torch::NoGradGuard no_grad;
    const auto exact = first_tensor(model.forward({x}));
    return max_difference(training.forward({x}).toTensor(), exact) / exact.abs().max().item<double>();
}

constexpr double kEightBits = 0.03;  // a few steps of 1/255 of each range

TEST(QatNorms, BehindATransposedConvolutionStayFoldedAndSayWhy) {
    // A transposed convolution is computed by phases of its stride, whose weight has another shape.
    struct Case {
        int64_t in, stride, groups;
    };
    for (const auto& [in, stride, groups] : {Case{8, 2, 1}, {4, 1, 1}, {4, 2, 2}, {4, 2, 1}}) {
        SCOPED_TRACE(std::to_string(in) + " " + std::to_string(stride) + " " + std::to_string(groups));
        const auto model = model_with(
            {{"c.weight", sine({in, 4 / groups, 3, 3}, 0.4)}, {"c.bias", sine({4}, 0.3)}}, {{"bn", 0.3}},
            norm_call("bn", "torch.conv_transpose2d(x, self.c.weight, self.c.bias, [" + std::to_string(stride) + ", " +
                                std::to_string(stride) + "], [1, 1], [0, 0], " + std::to_string(groups) + ")"));
        const auto x = values_of({3, in, 6, 6});
        const auto [training, said] = with_norms(model, x);
        EXPECT_LE(distance_from_float(training, model, x), kEightBits);
        ASSERT_EQ(said.count("bn"), 1u);
        EXPECT_THAT(said.at("bn"), ::testing::HasSubstr("transposed"));
        const auto module = training.trainable();
        module->train(true);
        module->forward({x}).square().sum().backward();
        int trained = 0;
        for (const auto& [name, tensor] : module->parameters())
            trained += tensor.dim() == 4 && tensor.grad().defined() && tensor.grad().abs().max().item<double>() > 0;
        EXPECT_EQ(trained, 1);  // the folded weight
    }
}

TEST(QatNorms, TwoBehindOneLayerAreBothFolded) {
    const auto x = values_of({6, 3, 8, 8});
    // The second one of a model that has not trained is nearly the identity, and still a batch norm.
    for (const bool fresh : {false, true}) {
        auto model = model_with({{"c.weight", sine({4, 3, 3, 3}, 0.4)}}, {{"one", 0.3}, {"two", 1.7}},
                                norm_call("two", norm_call("one", "torch.conv2d(x, self.c.weight)")));
        if (fresh)
            for (const auto& [name, value] : {std::pair{"weight", 1.0}, {"bias", 0.0}, {"running_mean", 0.0}})
                get_attribute(model, std::string("two.") + name).toTensor().detach().fill_(value);
        const auto [training, said] = with_norms(model, x);
        EXPECT_LE(distance_from_float(training, model, x), kEightBits);
        EXPECT_THAT(said.at("one"), ::testing::HasSubstr("more than one batch norm"));
        EXPECT_THAT(said.at("two"), ::testing::HasSubstr("more than one batch norm"));
        torch::NoGradGuard no_grad;
        EXPECT_LE(max_difference(first_tensor(convert(training).forward({x})), first_tensor(model.forward({x}))),
                  kEightBits * first_tensor(model.forward({x})).abs().max().item<double>());
    }
}

TEST(QatNorms, BeforeAHardSigmoidThatIsPutIntoTheLayerStayFolded) {
    const auto x = values_of({6, 3, 8, 8});
    const auto model = model_with({{"c.weight", sine({4, 3, 3, 3}, 0.4)}}, {{"bn", 0.3}},
                                  "torch.hardsigmoid(" + norm_call("bn", "torch.conv2d(x, self.c.weight)") + ")");
    const auto [training, said] = with_norms(model, x);
    EXPECT_LE(distance_from_float(training, model, x), kEightBits);
    EXPECT_THAT(said.at("bn"), ::testing::HasSubstr("something else was put into"));
    torch::NoGradGuard no_grad;
    EXPECT_LE(max_difference(first_tensor(convert(training).forward({x})), first_tensor(model.forward({x}))),
              kEightBits);
}

TEST(QatNorms, TrainBehindLayersOfEveryKindThatTheyCan) {
    struct Case {
        std::string name;
        std::vector<std::pair<std::string, at::Tensor>> tensors;
        std::string layer;
        std::vector<int64_t> input;
    };
    const std::vector<Case> cases = {
        {"linear",
         {{"c.weight", sine({4, 5}, 0.4)}, {"c.bias", sine({4}, 0.3)}},
         "torch.linear(x, self.c.weight, self.c.bias)",
         {24, 5}},
        {"conv1d", {{"c.weight", sine({4, 3, 3}, 0.4)}}, "torch.conv1d(x, self.c.weight)", {6, 3, 12}},
        {"grouped",
         {{"c.weight", sine({4, 2, 3, 3}, 0.4)}},
         "torch.conv2d(x, self.c.weight, None, [1, 1], [1, 1], [1, 1], 2)",
         {6, 4, 8, 8}},
        {"conv3d", {{"c.weight", sine({4, 3, 2, 2, 2}, 0.4)}}, "torch.conv3d(x, self.c.weight)", {3, 3, 4, 4, 4}}};
    for (const auto& [name, tensors, layer, input] : cases) {
        SCOPED_TRACE(name);
        const auto x = values_of(input);
        // Running statistics are those of the batch, so that ends of ranges clip neither way.
        const auto y = first_tensor(model_with(tensors, {}, layer).forward({x})).detach().transpose(0, 1).flatten(1);
        auto all = tensors;
        for (const auto& [key, tensor] : norm_of("bn", 0.3))
            all.emplace_back(key, key == "bn.running_mean"  ? y.mean(1)
                                  : key == "bn.running_var" ? y.var(1, /*unbiased=*/false)
                                                            : tensor);
        const auto model = model_with(all, {}, norm_call("bn", layer));
        const auto [training, said] = with_norms(model, x);
        EXPECT_EQ(said.at("bn"), "trained");
        EXPECT_LE(distance_from_float(training, model, x), kEightBits);
        // By batch statistics it is the float model's own training step, but for the rounding.
        const auto module = training.trainable();
        module->train(true);
        torch::NoGradGuard no_grad;
        auto by_batch = model.clone();
        by_batch.train(true);
        const auto exact = first_tensor(by_batch.forward({x}));
        const auto output = module->forward({x});
        EXPECT_LE(max_difference(output, exact), kEightBits * exact.abs().max().item<double>());
    }
}

TEST(QatStage, CountsTheBatchNormsThatTrain) {
    const auto run = [](const Model& model) {
        auto context = small_context(small_data());
        Warnings log;
        context.log = &log;
        Options options("quantize.qat", std::vector<std::pair<std::string, std::string>>{
                                            {"epochs", "1"}, {"batch_size", "16"}, {"bn", "trained"}});
        training_stages(builtin_losses()).front().make(options)->apply(model, context);
        return std::make_tuple(context.facts, context.changes, log.texts);
    };
    const auto all = std::get<0>(run(residual_model()));
    EXPECT_EQ(all["bn"], "trained");
    EXPECT_EQ(all["trained_norms"], 4);
    EXPECT_EQ(all["folded_norms"], 0);
    const auto model = model_with(
        {{"c.weight", sine({4, 3, 3, 3}, 0.4)}, {"f.weight", sine({10, 4}, 0.4)}}, {{"one", 0.3}, {"two", 1.7}},
        "torch.linear(" + norm_call("two", norm_call("one", "torch.conv2d(x, self.c.weight)")) +
            ".mean([2, 3]), self.f.weight)");
    const auto [facts, changes, warnings] = run(model);
    EXPECT_EQ(facts["bn"], "folded");
    EXPECT_EQ(facts["trained_norms"], 0);
    EXPECT_EQ(facts["folded_norms"], 2);
    EXPECT_THAT(warnings, ::testing::Contains(::testing::HasSubstr("none of 2 batch norms trains")));
    int reasons = 0;
    for (const auto& change : changes)
        reasons += change.action == "folded" && change.reason.find("more than one batch norm") != std::string::npos;
    EXPECT_EQ(reasons, 2);
}

/// An embedding and layers that share its parameter, with others around them.
Model tied_model(const std::string& expression) {
    return build_model(
        {{"e.weight", sine({12, 6}, 0.9)}, {"a.weight", sine({6, 6}, 0.5)}, {"b.weight", sine({12, 12}, 0.3)}},
        "def forward(self, ids):\n"
        "    h = torch.linear(torch.embedding(self.e.weight, ids), self.a.weight)\n"
        "    return " +
            expression + "\n");
}

TEST(Qat, ASharedParameterIsRoundedForTheLayersAloneAsInTraining) {
    const Inputs ids = {at::arange(40).remainder(12)};
    for (const auto& [expression, copies] : std::vector<std::pair<std::string, int>>{
             {"torch.linear(h, self.e.weight)", 1},
             {"torch.matmul(h, self.e.weight.t())", 1},
             {"torch.linear(torch.relu(torch.linear(h, self.e.weight)), self.b.weight) + torch.linear(h, "
              "self.e.weight)",
              1},
             // Read both ways: scales are per row for the one and per column for the other.
             {"torch.mm(torch.relu(torch.linear(h, self.e.weight)), self.e.weight)", 2}}) {
        SCOPED_TRACE(expression);
        QatOptions options;
        options.activation_bits = options.weight_bits = options.first_last_bits = 4;
        const auto training = prepare(tied_model(expression), ids, {ids}, options);
        torch::NoGradGuard no_grad;
        const auto result = convert(training);
        EXPECT_LE(max_difference(first_tensor(result.forward(ids)), training.forward(ids).toTensor()), 1e-6);
        int64_t tables = 0;
        for (const auto& named : named_tensors(result)) tables += named.tensor.numel() == 12 * 6;
        EXPECT_EQ(tables, 1 + copies);  // as it is, and rounded
    }
}

TEST(Qat, AWeightOfInnerAndLastLayersHasTheBitsThatItsLabelsSay) {
    const Inputs ids = {at::arange(40).remainder(12)};
    QatOptions options;
    options.weight_bits = options.activation_bits = 3;
    const auto training =
        prepare(tied_model("torch.linear(torch.relu(torch.mm(torch.relu(torch.linear(h, self.e.weight)), "
                           "self.e.weight)), self.e.weight)"),
                ids, {ids}, options);
    std::map<std::string, int64_t> bits;
    for (const auto& [name, quantizer] : training.quantizers())
        if (quantizer->options().weight) bits[name] = quantizer->options().bits;
    int checked = 0;
    for (const auto& layer : training.layers({ids})) {
        if (layer.layer.rfind("e#", 0) != 0) continue;
        EXPECT_THAT(layer.precision, ::testing::HasSubstr("W8")) << layer.layer << " " << layer.reason;
        ++checked;
    }
    EXPECT_EQ(checked, 3);
    for (const auto& [name, count] : bits)
        if (name.rfind("e", 0) == 0) EXPECT_EQ(count, 8) << name;
}

TEST(Qat, AnObserverSeesAllCalibrationDataBeforeScalesStart) {
    const auto model = build_model({{"c.weight", sine({4, 3, 3, 3}, 0.4)}, {"d.weight", sine({4, 4, 3, 3}, 0.3)}},
                                   "def forward(self, x):\n"
                                   "    x = torch.relu(torch.conv2d(x, self.c.weight))\n"
                                   "    return torch.relu(torch.conv2d(x, self.d.weight))\n");
    const auto x = values_of({4, 3, 8, 8});
    const std::vector<Inputs> batches = {{0.1 * x}, {x}, {0.5 * x}};
    const auto exact = at::relu(at::conv2d(x, sine({4, 3, 3, 3}, 0.4)));  // of the largest batch
    for (const auto& row : quantizers()) {
        SCOPED_TRACE(row.name);
        Options none(row.name, std::vector<std::pair<std::string, std::string>>{});
        QatOptions options;
        options.weight_bits = options.activation_bits = options.first_last_bits = 4;
        options.quantizer = row.make(none);
        options.observer = minmax();
        const auto training = prepare(model, {x}, batches, options);
        const double low = x.min().item<double>(), high = x.max().item<double>();
        const auto input = quantizer_of(training, "");
        FakeQuantize inner = nullptr;  // the first that rounds what a layer gives
        for (const auto& [name, quantizer] : training.quantizers())
            if (inner.is_empty() && name.find(".output") != std::string::npos) inner = quantizer;
        const double step = options.quantizer->offsets() ? (high - low) / 15 : std::max(high, -low) / 7;
        EXPECT_NEAR(input->scale().item<double>(), step, 1e-5);
        EXPECT_NEAR(inner->scale().item<double>(), exact.max().item<double>() / 15, 1e-5);
        EXPECT_EQ(inner->affine().zero_point, 0);
    }
    QatOptions own;  // the first batch is the smallest by far
    own.quantizer = lsq_plus();
    EXPECT_LT(quantizer_of(prepare(model, {x}, batches, own), "")->scale().item<double>(),
              0.2 * (x.max() - x.min()).item<double>() / 255);
}

TEST(QatStage, TakesAnObserverByName) {
    auto context = small_context(small_data());
    Setting settings = Setting::map({{"epochs", Setting::scalar("1")},
                                     {"batch_size", Setting::scalar("16")},
                                     {"lr", Setting::scalar("0.000001")},
                                     {"quantizer", Setting::scalar("lsq")},
                                     {"observer", Setting::scalar("minmax")}});
    const auto scales = [&] {
        Options options("quantize.qat", settings);
        const auto stages = training_stages(builtin_losses());
        const auto stage = stages.front().make(options);
        options.done();
        stage->apply(residual_model(), context);
        return context.facts["quantizers"];
    };
    const auto observed = scales();
    settings.members.pop_back();
    const auto own = scales();
    ASSERT_EQ(observed.size(), own.size());
    int apart = 0;
    for (size_t i = 0; i < own.size(); ++i) apart += observed[i]["largest_scale"] != own[i]["largest_scale"];
    EXPECT_GT(apart, 2);
}

TEST(Qat, ConvertedWeightsAreThoseOfTheLastStepWithTheRangeThatTheyHave) {
    QatOptions options;
    options.quantizer = minmax_range();
    const auto x = values_of({6, 3, 8, 8});
    const auto training = prepare(OneNorm().model(), {x}, {{x}}, options);
    const auto module = training.trainable();
    torch::NoGradGuard no_grad;
    module->train(true);
    module->forward({x});
    at::Tensor weight;
    for (const auto& [name, tensor] : module->parameters())
        if (tensor.dim() == 4) weight = tensor;
    weight.mul_(2);  // what an optimizer does after the last batch
    convert(training);
    EXPECT_TRUE(
        at::allclose(quantizer_of(training, "c.weight")->scale(), weight.abs().amax(at::IntArrayRef({1, 2, 3})) / 127));
}

TEST(Qat, RangesGoOnAfterAModelWasConvertedOrMeasuredInTheMiddleOfTraining) {
    for (const int64_t bits : {4, 8}) {
        QatOptions options;
        options.activation_bits = bits;
        options.first_last_bits = bits;
        options.quantizer = minmax_range();
        const auto x = values_of({6, 3, 8, 8});
        const auto training = prepare(residual_model(), {x}, {{x}}, options);
        const auto module = training.trainable();
        torch::NoGradGuard no_grad;
        module->train(true);
        module->forward({x});
        convert(training);
        training.layers({{x}});
        const auto of_input = quantizer_of(training, "");
        const double before = of_input->scale().item<double>();
        module->forward({3 * x});
        // A hundredth of the way to three times the range.
        EXPECT_NEAR(of_input->scale().item<double>(), 1.02 * before, 1e-5 * before) << bits;
        module->train(false);
        convert(training);
        module->forward({3 * x});
        EXPECT_NEAR(of_input->scale().item<double>(), 1.02 * before, 1e-5 * before) << bits;
    }
}

TEST(QatNorms, WhoseChannelsAreAllSwitchedOffTrainAsOthersDo) {
    OneNorm net;  // as the last batch norm of a residual branch often begins
    for (auto& [name, tensor] : net.tensors)
        if (name == "bn.weight" || name == "bn.bias") tensor = at::zeros({4});
    const auto x = values_of({6, 3, 8, 8});
    const auto [training, said] = with_norms(net.model(), x);
    EXPECT_EQ(said.at("bn"), "trained");
    const auto module = training.trainable();
    module->train(true);
    (module->forward({x}) * values_of({6, 4, 6, 6})).sum().backward();
    const auto gradient = found(module->parameters(), "bn.weight").grad();
    ASSERT_TRUE(gradient.defined());
    EXPECT_TRUE(gradient.isfinite().all().item<bool>());
    EXPECT_GT(gradient.abs().max().item<double>(), 0);  // they can come back
}

TEST(QatStage, AsksForTrainedNormsWhereTheirFreezingIsGiven) {
    Options options("quantize.qat", std::vector<std::pair<std::string, std::string>>{{"freeze_bn_epoch", "1"}});
    EXPECT_ERROR(training_stages(builtin_losses()).front().make(options), InvalidArgument, "bn: trained");
}

TEST(QatStage, RefusesToFreezeRangesThatNoQuantizerFollows) {
    for (const auto& row : quantizers()) {
        SCOPED_TRACE(row.name);
        Options options("quantize.qat", std::vector<std::pair<std::string, std::string>>{
                                            {"freeze_observer_epoch", "0.5"}, {"quantizer", row.name}});
        Options none(row.name, std::vector<std::pair<std::string, std::string>>{});
        QatOptions settings;
        settings.quantizer = row.make(none);
        settings.watch_batches = 2;
        const auto prepared = [&] {
            prepare(residual_model(), {sine({2, 3, 8, 8})}, {{sine({2, 3, 8, 8})}}, settings);
        };
        FakeQuantizeOptions values;
        values.quantizer = settings.quantizer;
        values.watch_batches = 2;
        if (row.name == "minmax") {
            EXPECT_NO_THROW(training_stages(builtin_losses()).front().make(options));
            EXPECT_NO_THROW(prepared());
            EXPECT_NO_THROW(FakeQuantize{values});
            continue;
        }
        EXPECT_ERROR(training_stages(builtin_losses()).front().make(options), InvalidArgument, "freeze_observer_epoch");
        EXPECT_ERROR(prepared(), InvalidArgument, "watch_batches");
        EXPECT_ERROR(FakeQuantize{values}, InvalidArgument, "watch_batches");
    }
    QatOptions settings;
    settings.norm_batches = 2;
    EXPECT_ERROR(prepare(residual_model(), {sine({2, 3, 8, 8})}, {{sine({2, 3, 8, 8})}}, settings), InvalidArgument,
                 "train_norms");
}

TEST(QatStage, WeightsOfFewBitsWithEightBitActivationsAreSimulatedInFactsAndRows) {
    auto context = small_context(small_data());
    Options options("quantize.qat", std::vector<std::pair<std::string, std::string>>{
                                        {"epochs", "1"}, {"batch_size", "16"}, {"weight_bits", "4"}});
    training_stages(builtin_losses()).front().make(options)->apply(residual_model(), context);
    EXPECT_TRUE(context.facts["simulated"].get<bool>());
    int few = 0;
    for (const auto& row : context.facts["layers"]) few += row.at("precision") == "int8 (simulated W4A8)";
    EXPECT_EQ(few, 3);
    int changes = 0;
    for (const auto& change : context.changes) changes += change.after == "int8 (simulated W4A8)";
    EXPECT_EQ(changes, 3);
    Options eight("quantize.qat",
                  std::vector<std::pair<std::string, std::string>>{{"epochs", "1"}, {"batch_size", "16"}});
    training_stages(builtin_losses()).front().make(eight)->apply(residual_model(), context);
    EXPECT_FALSE(context.facts["simulated"].get<bool>());
}

TEST(QatStage, WarnsOfATrainingThatDidHarm) {
    const auto warnings_of = [](const std::string& lr, const std::vector<double>& metrics) {
        Setting settings = Setting::map(
            {{"epochs", Setting::scalar("1")}, {"batch_size", Setting::scalar("8")}, {"lr", Setting::scalar(lr)}});
        Options options("quantize.qat", settings);
        const auto stages = training_stages(builtin_losses());
        const auto stage = stages.front().make(options);
        EXPECT_EQ(options.resolved().at("clip_norm"), 1);  // the stage's own default; the trainer's is off
        auto context = small_context(small_data());
        Warnings log;
        context.log = &log;
        size_t next = 0;
        context.evaluate = [&](const Model&) { return metrics.at(next++); };
        stage->apply(residual_model(), context);
        EXPECT_EQ(context.facts["metric_at_start"], metrics[0]);
        return log.texts;
    };
    EXPECT_THAT(warnings_of("0.001", {90, 91}), ::testing::IsEmpty());
    // Steps of length 30 in a direction of length 1 leave no weight where its scale can follow.
    EXPECT_THAT(warnings_of("30", {90, 50}), ::testing::IsSupersetOf({::testing::HasSubstr("worse, from 90 to 50"),
                                                                      ::testing::HasSubstr("mostly noise")}));
}

/// Counts the reports of every task.
class Reports final : public Log {
public:
    void write(const std::string&, const std::string&) override {}
    void progress(const std::string& task, double, double, const std::string&) override {
        ++of[task];
        ++all;
    }
    std::map<std::string, int> of;
    int all = 0;
};

TEST(QatStage, CalibrationShowsItsProgressAndEndsWhenAsked) {
    const auto apply = [](Context& context) {
        Options options("quantize.qat",
                        std::vector<std::pair<std::string, std::string>>{{"epochs", "1"}, {"batch_size", "16"}});
        training_stages(builtin_losses()).front().make(options)->apply(residual_model(), context);
    };
    auto context = small_context(small_data());
    Reports log;
    context.log = &log;
    apply(context);
    const int ranges = log.of["observing ranges"];
    EXPECT_GT(ranges, 5);                          // an operator of a batch each
    EXPECT_GT(log.of["measuring noise"], ranges);  // before training, and again behind it
    for (const int patience : {1, ranges}) {
        Reports again;
        context.log = &again;
        context.interrupted = [&] { return again.all > patience; };
        EXPECT_THROW(apply(context), Interrupted) << patience;
        EXPECT_EQ(again.all, patience + 1);  // at once, and not when the first epoch begins
    }
}

TEST_P(QatOf, NoFileIsMadeOfADivergedTraining) {
    for (const int64_t bits : {8, 4}) {
        const auto x = values_of({2, 3, 8, 8});
        const auto prepared = [&] { return prepare(residual_model(), {x}, {{x}}, options(bits)); };
        torch::NoGradGuard no_grad;
        // Of the first activation inside: a whole number above 1e10, as one was seen to become, and up to there.
        const auto with_scale = [&](double scale) {
            const auto training = prepared();
            for (const auto& [name, quantizer] : training.quantizers()) {
                if (quantizer->options().weight || name.find(".output") == std::string::npos) continue;
                const auto learned = quantizer->named_parameters().contains("learned")
                                         ? quantizer->named_parameters()["learned"]
                                         : quantizer->named_buffers()["learned"];
                learned.mul_(scale / quantizer->scale().item<double>());
                return std::make_pair(training, name);
            }
            throw std::runtime_error("no activation");
        };
        const auto [large, name] = with_scale(1.6e11);
        EXPECT_ERROR(convert(large), Error, "quantize.qat at " + name + ": its scale is 1.6e+11, must be below 1e+10");
        EXPECT_ERROR(convert(large), Error, "training diverged");
        const auto some = convert(with_scale(9.9e9).first);
        TemporaryFolder folder;
        some.save(folder / "model.pt");
        auto stock = torch::jit::load((folder / "model.pt").string());
        EXPECT_TRUE(at::equal(first_tensor(stock.forward({x})), first_tensor(some.forward({x}))));

        const auto broken = prepared();
        broken.trainable()->parameters().front().second.flatten()[0] = std::nan("");
        EXPECT_ERROR(convert(broken), Error, "it holds NaN or infinity: training diverged");
    }
}

TEST(QatStage, EndsWithAnErrorWhereItDiverged) {
    // The first step makes weights large, in the second activations grow by them layer after layer, and ranges follow.
    Setting settings =
        Setting::map({{"epochs", Setting::scalar("1")},
                      {"batch_size", Setting::scalar("16")},
                      {"quantizer", Setting::map({{"minmax", Setting::map({{"momentum", Setting::scalar("1")}})}})},
                      {"warmup_epochs", Setting::scalar("0")},
                      {"clip_norm", Setting::scalar("0")},
                      {"lr", Setting::scalar("1000000")}});
    Options options("quantize.qat", settings);
    const auto stages = training_stages(builtin_losses());
    auto context = small_context(small_data());
    EXPECT_ERROR(stages.front().make(options)->apply(residual_model(), context), Error, "training diverged");
}

TEST(QatStage, ResumesAtAnEpochToTheSameBits) {
    for (const auto& [quantizer, bn] :
         {std::pair<std::string, std::string>{"lsq_plus", "trained"}, {"minmax", "folded"}}) {
        Setting settings =
            Setting::map({{"epochs", Setting::scalar("3")},
                          {"batch_size", Setting::scalar("8")},
                          {"weight_bits", Setting::scalar("4")},
                          {"activation_bits", Setting::scalar("4")},
                          {"freeze_observer_epoch", Setting::scalar(quantizer == "minmax" ? "1.5" : "0")},
                          {"freeze_bn_epoch", Setting::scalar(bn == "trained" ? "2.5" : "0")},
                          {"bn", Setting::scalar(bn)},
                          {"quantizer", Setting::scalar(quantizer)}});
        const auto run = [&](Context& context) {
            Options options("quantize.qat", settings);
            const auto stages = training_stages(builtin_losses());
            const auto stage = stages.front().make(options);
            options.done();
            return stage->apply(residual_model(), context);
        };
        auto whole = small_context(small_data());
        const auto expected = run(whole);
        EXPECT_TRUE(whole.facts["simulated"].get<bool>());
        const auto& row = whole.facts["layers"][0];
        EXPECT_GT(row.at("sqnr_db").get<double>(), 0);
        EXPECT_EQ(row.at("precision"), "float32, simulated W8A8");  // the first layer
        EXPECT_GT(row.at("seconds_before").get<double>(), 0);
        EXPECT_GT(row.at("seconds_after").get<double>(), 0);
        TemporaryFolder folder;
        auto first = small_context(small_data());
        first.work_dir = folder.path();
        int evaluated = 0;
        first.evaluate = [&](const Model& model) {
            int roundings = 0;
            for (const auto* node : all_nodes(*model.graph()))
                roundings += std::string(node->kind().toQualString()) == "aten::fake_quantize_per_tensor_affine";
            EXPECT_GT(roundings, 0);  // the metric is that of the quantized model
            ++evaluated;
            return 0.0;
        };
        first.interrupted = [&] { return evaluated == 2; };
        EXPECT_THROW(run(first), Interrupted);
        auto second = small_context(small_data());
        second.work_dir = folder.path();
        const auto resumed = run(second);
        EXPECT_TRUE(second.facts["resumed"].get<bool>());
        torch::NoGradGuard no_grad;
        EXPECT_TRUE(
            at::equal(first_tensor(resumed.forward(second.example)), first_tensor(expected.forward(second.example))));
    }
}

TEST(Qat, ResNet20IsTrainedAsItsInt8KernelsCompute) {
    SKIP_WITHOUT_DATA("cifar10/resnet20.pt");
    torch::set_num_threads(1);
    std::ifstream file(data_path("cifar10/train.bin"), std::ios::binary);
    auto bytes = at::empty({64, 3073}, at::kByte);
    file.read(static_cast<char*>(bytes.data_ptr()), bytes.numel());
    const auto mean = at::tensor({0.485f, 0.456f, 0.406f}).reshape({1, 3, 1, 1});
    const auto deviation = at::tensor({0.229f, 0.224f, 0.225f}).reshape({1, 3, 1, 1});
    const auto images = (bytes.slice(1, 1).reshape({64, 3, 32, 32}).to(at::kFloat) / 255 - mean) / deviation;
    const auto data = tensor_dataset({images}, bytes.select(1, 0).to(at::kLong), "images");
    const auto training = prepare(Model::load(data_path("cifar10/resnet20.pt")), {images.slice(0, 0, 1)},
                                  std::vector<Inputs>(1, Inputs{images}), QatOptions());
    TrainOptions settings;
    settings.batch_size = 32;
    settings.lr = 0.001;
    const auto module = training.trainable();
    Trainer(settings).fit(*module, *data, *cross_entropy());
    module->train(false);
    torch::NoGradGuard no_grad;
    const Inputs inputs = {images.slice(0, 0, 8)};
    const auto fake = training.forward(inputs).toTensor();
    EXPECT_LE(max_difference(fake_quantized(training.trained_plan(), inputs).toTensor(), fake), 1e-5);
    const auto int8 = convert(training);
    const auto checked = testing::check_every_layer(int8, inputs);
    EXPECT_EQ(checked["quantized::conv2d"] + checked["quantized::conv2d_relu"], 21);
    EXPECT_LE(checked.worst_quanta, 1.01) << checked.worst;
    EXPECT_TRUE(at::equal(int8.forward(inputs).toTensor().argmax(1), fake.argmax(1)));
}

}  // namespace
}  // namespace coppice::quantize
