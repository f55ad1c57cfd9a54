// Blocks composed at random: what static and dynamic int8 make of them computes what the float model computes, within
// 8-bit rounding, for every batch size, and the file gives the bits of the model. COPPICE_FUZZ=1000 draws that many.
#include "support/random_graph.h"

#include <cmath>

#include "layer_check.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

/// Of all floating-point outputs together.
double sqnr_of(const std::vector<at::Tensor>& exact, const std::vector<at::Tensor>& rounded) {
    if (exact.size() != rounded.size()) return -1;
    double signal = 0, noise = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
        if (exact[i].sizes() != rounded[i].sizes() || exact[i].scalar_type() != rounded[i].scalar_type()) return -2;
        signal += exact[i].pow(2).sum(at::kDouble).item<double>();
        noise += (exact[i] - rounded[i]).pow(2).sum(at::kDouble).item<double>();
    }
    return 10 * std::log10(signal / std::max(noise, 1e-300));
}

at::Tensor images(int64_t count, uint64_t seed) {
    auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
    return at::randn({count, 3, 8, 8}, generator).clamp(-3, 3);
}

class RandomGraphs : public ::testing::Test {
protected:
    static uint64_t graphs() {
        const char* wanted = std::getenv("COPPICE_FUZZ");
        return wanted ? std::strtoull(wanted, nullptr, 10) : 40;
    }

    /// The same bits from the file, outputs laid out as the float model's, and little noise for the batch sizes: as
    /// much as the plan's simulation in float has, where some of the blocks make a small disturbance large.
    void expect_as_good_as_float(const Model& model, const StaticPlan& plan, const Model& int8, uint64_t seed,
                                 const char* kernels) {
        SCOPED_TRACE(kernels);
        int8.save(folder_ / "model.pt");
        auto stock = torch::jit::load((folder_ / "model.pt").string());
        for (const int64_t count : {1, 5}) {
            const Inputs inputs{images(count, seed + 1000)};
            const auto exact = all_tensors(model.forward(inputs)), rounded = all_tensors(int8.forward(inputs)),
                       simulated = all_tensors(fake_quantized(plan, inputs));
            const double simulated_db = sqnr_of(exact, simulated);
            EXPECT_GE(sqnr_of(exact, rounded), std::min(20.0, simulated_db - 3)) << "batch of " << count;
            EXPECT_GE(sqnr_of(simulated, rounded), std::min(25.0, simulated_db - 3)) << "batch of " << count;
            loud_ += simulated_db < 23;
            const auto loaded = all_tensors(stock.forward({inputs[0].toTensor().clone()}));
            ASSERT_EQ(loaded.size(), rounded.size());
            for (size_t i = 0; i < loaded.size(); ++i) {
                EXPECT_TRUE(at::equal(loaded[i], rounded[i])) << "output " << i;
                EXPECT_TRUE(rounded[i].is_contiguous() || !exact[i].is_contiguous()) << "output " << i;
            }
        }
    }

    uint64_t loud_ = 0;  ///< batches whose simulation is noisier than most
    TemporaryFolder folder_;
};

TEST_F(RandomGraphs, StaticInt8StaysWithinRounding) {
    torch::NoGradGuard no_grad;
    int64_t int8_layers = 0;
    for (uint64_t seed = 1; seed <= graphs(); ++seed) {
        const RandomGraph graph(decisions_of(seed), Blocks::kAll);
        SCOPED_TRACE("seed " + std::to_string(seed) + "\n" + graph.source());
        try {
            const auto model = graph.model();
            StaticOptions options;
            options.observer = seed % 2 ? minmax() : histogram();
            options.per_channel = seed % 5 != 0;
            options.conv = options.linear = "packed";
            const auto example = images(2, seed);
            const auto plan = plan_static(model, {example}, {{images(16, seed + 1)}, {images(16, seed + 2)}}, options);
            for (const auto& layer : plan.layers()) {
                int8_layers += layer.int8 && layer.parameters > 0;
                EXPECT_EQ(layer.reason.empty(), layer.int8) << layer.layer << " " << layer.op;
            }
            const auto int8 = convert(plan);
            const auto checked = testing::check_every_layer(int8, {images(3, seed + 3)});
            EXPECT_LE(checked.worst_quanta, 1.01) << checked.worst;
            expect_as_good_as_float(model, plan, int8, seed, "packed");
            if (!exact_int8_products()) continue;
            options.conv = options.linear = "fused";
            const auto fused_plan =
                plan_static(model, {example}, {{images(16, seed + 1)}, {images(16, seed + 2)}}, options);
            const auto fused = convert(fused_plan);
            expect_as_good_as_float(model, fused_plan, fused, seed, "fused");
            const Inputs many{images(64, seed + 5)};  // so that luck with ties counts little
            const auto exact = all_tensors(model.forward(many));
            const double packed_db = sqnr_of(exact, all_tensors(int8.forward(many))),
                         fused_db = sqnr_of(exact, all_tensors(fused.forward(many)));
            // The same integers go in, and it rounds at fewer places: no noisier than the packed operators, but for
            // errors that happen to cancel there (1.6 dB in the worst of 150 graphs).
            EXPECT_GE(fused_db, packed_db - 3);
        } catch (const std::exception& error) {
            ADD_FAILURE() << message_of(error);
        }
        if (HasFailure()) return;
    }
    EXPECT_LE(loud_, graphs() / 10);
    EXPECT_GT(int8_layers, 4 * static_cast<int64_t>(graphs())) << "hardly anything ran in int8";
}

}  // namespace
}  // namespace coppice::quantize
