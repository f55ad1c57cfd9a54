#include "prune/masking.h"

namespace coppice::testing {
namespace {

using prune::Groups;
using prune::Removal;

std::shared_ptr<Dataset> images(int64_t count) {
    return tensor_dataset(
        {(at::arange(count * 3 * 8 * 8, at::kDouble) * 0.7).sin().to(at::kFloat).reshape({count, 3, 8, 8})},
        at::arange(count).remainder(10), "smooth images");
}

TrainOptions short_training() {
    TrainOptions options;
    options.epochs = 2;
    options.batch_size = 8;
    options.lr = 0.02;
    options.autocast = "off";
    return options;
}

/// Largest difference between outputs, divided by the largest output, in eval and in training mode.
void expect_same_outputs(const Model& a, const Model& b, const Inputs& inputs, double tolerance) {
    torch::NoGradGuard no_grad;
    for (const bool training : {false, true}) {
        SCOPED_TRACE(training ? "training" : "eval");
        Model first = a.clone(), second = b.clone();  // training changes running statistics
        first.train(training);
        second.train(training);
        const auto x = first_tensor(first.forward(inputs)), y = first_tensor(second.forward(inputs));
        EXPECT_LE(max_difference(x, y), tolerance * x.abs().max().item<double>());
    }
}

/// Activations that are not zero at zero, a gate, concatenation and a grouped convolution.
Model awkward_model() {
    return build_model({{"a.weight", sine({8, 3, 3, 3}, 0.4)},
                        {"a.bias", sine({8}, 0.5)},
                        {"gate.weight", sine({8, 8, 1, 1}, 0.7)},
                        {"b.weight", sine({8, 2, 3, 3}, 0.3)},
                        {"c.weight", sine({6, 16, 1, 1}, 0.3)},
                        {"c.bias", sine({6}, 0.3)},
                        {"fc.weight", sine({5, 6}, 0.5)}},
                       R"(
def forward(self, x):
    x = torch.sigmoid(torch.conv2d(x, self.a.weight, self.a.bias, [1, 1], [1, 1]))
    g = torch.sigmoid(torch.conv2d(torch.mean(x, [2, 3], True), self.gate.weight))
    y = torch.gelu(torch.conv2d(x * g, self.b.weight, None, [1, 1], [1, 1], [1, 1], 4))
    z = torch.softplus(torch.conv2d(torch.cat([x, y], 1), self.c.weight, self.c.bias))
    return torch.linear(torch.mean(z, [2, 3]), self.fc.weight)
)");
}

TEST(Masker, TheMaskedModelEqualsTheCutOne) {
    for (const auto& model : {residual_model(), awkward_model()}) {
        for (const uint64_t seed : {1, 2, 3}) {
            const Inputs example = {sine({4, 3, 8, 8})};
            Model masked = model.clone();
            prune::Masker masker(masked, example);
            for (const auto& group : masker.groups().all()) EXPECT_TRUE(group.exact) << group.name;
            const auto removal = random_removal(masker.groups(), 0.5, seed);
            masker.mask(removal);
            const auto facts = Facts::observe(model, example);
            const auto smaller = prune::cut(model, facts, prune::find_groups(model, facts), removal);
            expect_same_outputs(masked, smaller, example, 1e-5);  // float32 sums in another order
            expect_same_outputs(masked, masker.cut(), example, 1e-5);
        }
    }
}

TEST(Masker, HeadsOfAFusedEncoderAreMaskedInThePlaceWhereTheyAre) {
    const Inputs example = {sine({4, 7, 6})};
    Model model = fused_encoder();
    prune::Masker masker(model, example);
    auto removal = random_removal(masker.groups(), 0.5, 3);
    size_t heads = 0;
    for (size_t g = 0; g < removal.size(); ++g) {
        const auto& group = masker.groups().all()[g];
        if (!group.exact) removal[g].clear();  // read by a layer norm, whose statistics only a cut changes
        heads += group.name == "a.qkv" && group.channels == 3;
    }
    EXPECT_EQ(heads, 1u);
    masker.mask(removal);
    expect_same_outputs(model, masker.cut(), example, 1e-5);  // float32 sums in another order
    EXPECT_EQ(get_attribute(masker.cut(), "a.qkv.weight").toTensor().size(0), 24);
}

TEST(Masker, GrowSeesWhatTrainingMadeOfAFusedEncoder) {
    const Inputs example = {sine({4, 7, 6})};
    Context context;
    context.example = example;
    for (const int64_t weak : {0, 2}) {
        Model model = fused_encoder();
        prune::Masker masker(model, example);
        {
            torch::NoGradGuard no_grad;  // as an optimizer's step: in place
            for (const int64_t part : {0, 12, 24})
                get_attribute(model, "a.qkv.weight")
                    .toTensor()
                    .slice(0, part + 4 * weak, part + 4 * weak + 4)
                    .mul_(1e-3);
        }
        prune::Target target;
        target.ratio = 0.34;
        target.round_to = 1;
        masker.grow(*prune::magnitude(), *prune::uniform(), target, context);
        for (size_t g = 0; g < masker.removal().size(); ++g)
            if (masker.groups().all()[g].name == "a.qkv") {
                EXPECT_EQ(masker.removal()[g], std::vector<int64_t>{weak});
            }
    }
}

TEST(Masker, TheMaskedResNet20EqualsTheCutOne) {
    SKIP_WITHOUT_DATA("cifar10/resnet20.pt");
    Model model = Model::load(data_path("cifar10/resnet20.pt"));
    const Inputs example = {sine({4, 3, 32, 32})};
    prune::Masker masker(model, example);
    masker.mask(random_removal(masker.groups(), 0.4, 7));
    const auto smaller = masker.cut();
    EXPECT_LT(cost(smaller, example).macs, 0.5 * cost(model, example).macs);
    expect_same_outputs(model, smaller, example, 1e-4);
}

TEST(Masker, TrainingMaskedIsTrainingTheCutModel) {
    const Inputs example = {sine({4, 3, 8, 8})};
    for (const char* optimizer : {"sgd", "adamw"}) {
        SCOPED_TRACE(optimizer);
        auto options = short_training();
        options.optimizer = optimizer;
        options.lr = 0.002;
        Model masked = residual_model();
        prune::Masker masker(masked, example);
        masker.mask(random_removal(masker.groups(), 0.4, 5));
        Model smaller = masker.cut();
        int64_t called = 0;
        TrainCallbacks others;
        others.on_gradients = [&](Trainable&) { ++called; };
        Trainer(options).fit(*trainable(masked), *images(40), *cross_entropy(), {}, masker.callbacks(others));
        Trainer(options).fit(*trainable(smaller), *images(40), *cross_entropy());
        EXPECT_EQ(called, 10);
        const auto cut = masker.cut();
        for (const auto& named : named_tensors(smaller)) {
            if (!named.tensor.is_floating_point()) continue;
            // Ten steps in float32, whose sums run over more zeros in the one than in the other. A masked channel's
            // running variance does not matter and is cut as well.
            EXPECT_LT(max_difference(named.tensor, get_attribute(cut, named.name).toTensor()), 2e-4) << named.name;
        }
    }
}

TEST(Masker, KeepsMaskedWeightsAtZeroThroughMomentum) {
    const Inputs example = {sine({4, 3, 8, 8})};
    Model model = residual_model();
    const auto module = trainable(model);
    Trainer(short_training()).fit(*module, *images(40), *cross_entropy());
    prune::Masker masker(model, example);
    const auto removal = random_removal(masker.groups(), 0.5, 3);
    // Masks that come in the middle of a training, when velocities are there.
    TrainCallbacks late = masker.callbacks();
    late.on_step = [&](const StepInfo& step) {
        if (step.epoch == 0 && step.step == 2) masker.mask(removal);
        return true;
    };
    Trainer(short_training()).fit(*module, *images(40), *cross_entropy(), {}, late);
    int64_t zeros = 0;
    for (size_t g = 0; g < removal.size(); ++g)
        for (const auto& slice : masker.groups().all()[g].slices) {
            if (!slice.parameter) continue;
            for (size_t i = 0; i < slice.channel_of.size(); ++i) {
                const bool gone = std::binary_search(removal[g].begin(), removal[g].end(), slice.channel_of[i]);
                const auto part = slice.tensor.select(slice.dim, static_cast<int64_t>(i));
                if (!gone) continue;
                EXPECT_EQ(part.abs().max().item<float>(), 0) << slice.name << " " << i;
                ++zeros;
            }
        }
    EXPECT_GT(zeros, 0);
    expect_same_outputs(model, masker.cut(), example, 1e-5);
}

TEST(Masker, AnUnmaskedChannelHasItsValuesBack) {
    const Inputs example = {sine({2, 3, 8, 8})};
    Model model = residual_model();
    prune::Masker masker(model, example);
    const auto removal = random_removal(masker.groups(), 0.5, 1);
    masker.mask(removal);
    EXPECT_EQ(masker.removal(), removal);
    masker.mask(random_removal(masker.groups(), 0.5, 2));
    masker.mask(Removal(masker.groups().all().size()));
    const auto original = residual_model();
    for (const auto& named : named_tensors(original))
        EXPECT_TRUE(at::equal(named.tensor, get_attribute(model, named.name).toTensor())) << named.name;
}

TEST(Masker, SoftMasksTouchOnlyTheFiltersAndLetThemGrowBack) {
    const Inputs example = {sine({4, 3, 8, 8})};
    Model model = residual_model();
    prune::Masker masker(model, example, /*soft=*/true);
    Context context;
    context.example = example;
    prune::Target target;
    target.round_to = 1;
    masker.grow(*prune::magnitude(), *prune::uniform(), target, context);
    const auto conv = get_attribute(model, "conv2.weight").toTensor(),
               bn = get_attribute(model, "bn2.weight").toTensor();
    const auto empty = [&] { return conv.detach().abs().amax({1, 2, 3}).eq(0).sum().item<int64_t>(); };
    EXPECT_EQ(empty(), 8);
    EXPECT_TRUE(at::equal(bn, get_attribute(residual_model(), "bn2.weight").toTensor()));
    Trainer(short_training()).fit(*trainable(model), *images(40), *cross_entropy(), {}, masker.callbacks());
    EXPECT_LT(empty(), 8);
    EXPECT_EQ(get_attribute(masker.cut(), "conv2.weight").toTensor().size(0), 8);
}

TEST(Masker, GrowScoresTheModelAsItWouldBeCut) {
    // The same as prune.channel in three steps, whose test is against plain loops.
    const Inputs example = {sine({2, 3, 8, 8})};
    Context context;
    context.example = example;
    Model model = residual_model();
    prune::Masker masker(model, example);
    prune::Target target;
    target.macs_ratio = 0.4;
    target.round_to = 1;
    for (const double time : {1.0 / 3, 2.0 / 3, 1.0})
        masker.grow(*prune::magnitude(), *prune::global(), prune::at_time(target, *prune::cubic(), time), context);
    const auto stage = make_stage({{"macs_ratio", "0.4"}, {"round_to", "1"}, {"schedule", "cubic"}, {"steps", "3"}});
    const auto expected = stage->apply(residual_model(), context);
    const auto found = masker.cut();
    for (const auto& named : named_tensors(expected))
        EXPECT_EQ(max_difference(named.tensor, get_attribute(found, named.name).toTensor()), 0) << named.name;
}

TEST(Masker, ItsStateMakesTheSameMasksElsewhere) {
    const Inputs example = {sine({2, 3, 8, 8})};
    Model first = residual_model(), second = residual_model();
    prune::Masker from(first, example), to(second, example);
    from.mask(random_removal(from.groups(), 0.5, 4));
    const auto a = from.state();
    auto b = to.state();
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
        EXPECT_EQ(a[i].first, b[i].first);
        b[i].second.copy_(a[i].second);
    }
    to.restore();
    EXPECT_EQ(to.removal(), from.removal());
    to.apply();
    expect_same_outputs(first, second, example, 0);
}

TEST(Masker, LeavesTheModeOfTheModelAlone) {
    Model model = residual_model();
    model.train();
    const auto mean = get_attribute(model, "bn1.running_mean").toTensor().clone();
    prune::Masker masker(model, {sine({2, 3, 8, 8})});
    masker.mask(random_removal(masker.groups(), 0.5, 1));
    masker.cut();
    EXPECT_TRUE(model.module().is_training());
    EXPECT_TRUE(at::equal(mean, get_attribute(model, "bn1.running_mean").toTensor()));
}

TEST(Masker, TheLoopOfTheDocumentationWorks) {
    Model model = residual_model();
    const Inputs example = {sine({2, 3, 8, 8})};
    const auto data = images(16);
    auto options = short_training();
    options.epochs = 1;
    Context context;
    context.example = example;

    prune::Masker masker(model, example);
    const auto module = trainable(model);
    prune::Target target;
    for (const double ratio : {0.25, 0.5}) {
        target.ratio = ratio;
        masker.grow(*prune::magnitude(), *prune::uniform(), target, context);
        Trainer(options).fit(*module, *data, *cross_entropy(), {}, masker.callbacks());
    }
    const Model smaller = masker.cut();

    EXPECT_EQ(get_attribute(smaller, "conv2.weight").toTensor().size(0), 8);
}

TEST(Masker, MistakesAreNamed) {
    Model model = residual_model();
    prune::Masker masker(model, {sine({2, 3, 8, 8})});
    auto removal = Removal(masker.groups().all().size());
    EXPECT_ERROR(masker.mask({}), InvalidArgument, "has 0 lists for");
    removal[0] = {1, 1};
    EXPECT_ERROR(masker.mask(removal), InvalidArgument, "out of range or out of order");
    removal[0] = {0, 1, 2, 3, 4, 5, 6, 7};
    EXPECT_ERROR(masker.mask(removal), InvalidArgument, "all 8 channels would go");
}

}  // namespace
}  // namespace coppice::testing
