#include "prune/masking.h"

namespace coppice::testing {
namespace {

Context context_of(const Inputs& example) {
    Context context;
    context.example = example;
    const auto x = sine({16, 3, 8, 8});
    context.data.calibration = tensor_dataset({x}, at::arange(16).remainder(10), "by hand");
    return context;
}

const Inputs kExample = {sine({2, 3, 8, 8})};

TEST(PruneStage, RatioZeroIsTheIdentity) {
    const auto model = residual_model();
    auto context = context_of(kExample);
    const auto same = make_stage({{"ratio", "0"}})->apply(model, context);
    EXPECT_TRUE(at::equal(first_tensor(run_nodes(same, kExample)), first_tensor(run_nodes(model, kExample))));
    for (const auto& named : named_tensors(model))
        EXPECT_TRUE(at::equal(named.tensor, get_attribute(same, named.name).toTensor())) << named.name;
    for (const auto& change : context.changes) EXPECT_EQ(change.action, "kept") << change.layer;
}

TEST(PruneStage, RecordsEveryLayerWithItsWidthOrReason) {
    const auto model = residual_model();
    auto context = context_of(kExample);
    const auto smaller = make_stage({{"ratio", "0.5"}, {"scope", "uniform"}, {"round_to", "1"}})->apply(model, context);
    ASSERT_EQ(context.changes.size(), 5u);
    for (const auto& change : context.changes) {
        const auto weight = get_attribute(smaller, change.layer + ".weight").toTensor();
        EXPECT_EQ(change.after, std::to_string(weight.size(0)) + " channels") << change.layer;
        EXPECT_EQ(change.action, change.layer == "fc" ? "kept" : "pruned");
        if (change.layer == "conv2") {
            EXPECT_EQ(change.before + " -> " + change.after, "16 channels -> 8 channels");
        }
        if (change.layer == "fc") {
            EXPECT_EQ(change.reason, "is an output of the model");
        }
    }
    EXPECT_EQ(context.facts["macs_before"].get<double>(), cost(model, kExample).macs);
    EXPECT_EQ(context.facts["macs_after"].get<double>(), cost(smaller, kExample).macs);
    EXPECT_EQ(context.facts["parameters_after"].get<int64_t>(), cost(smaller, kExample).parameters);
    EXPECT_EQ(first_tensor(run_nodes(smaller, kExample)).sizes(), (std::vector<int64_t>{2, 10}));
}

TEST(PruneStage, TheSameSeedGivesTheSameBits) {
    const auto model = residual_model();
    std::vector<at::Tensor> outputs;
    for (int i = 0; i < 2; ++i) {
        auto context = context_of(kExample);
        outputs.push_back(first_tensor(
            run_nodes(make_stage({{"criterion", "taylor"}, {"round_to", "1"}})->apply(model, context), kExample)));
    }
    EXPECT_TRUE(at::equal(outputs[0], outputs[1]));
}

TEST(PruneStage, IgnoredLayersKeepTheirOutputs) {
    const auto model = residual_model();
    auto context = context_of(kExample);
    Options options("prune.channel", Setting::map({{"ratio", Setting::scalar("0.5")},
                                                   {"round_to", Setting::scalar("1")},
                                                   {"ignore", [] {
                                                        Setting list;
                                                        list.kind = Setting::Kind::kList;
                                                        list.items = {Setting::scalar("^shortcut$")};
                                                        return list;
                                                    }()}}));
    const auto smaller =
        find_entry(prune::stages(), "stage", "prune.channel", "test").make(options)->apply(model, context);
    EXPECT_EQ(get_attribute(smaller, "shortcut.weight").toTensor().size(0), 16);
    EXPECT_EQ(get_attribute(smaller, "conv3.weight").toTensor().size(0), 16);  // they are added
    EXPECT_LT(get_attribute(smaller, "conv2.weight").toTensor().size(0), 16);
}

TEST(PruneStage, ErrorsNameTheReason) {
    auto context = context_of({sine({2, 6})});
    const auto linear = build_model({{"a.weight", sine({12, 6}, 0.4)}},
                                    "def forward(self, x):\n    return torch.linear(x, self.a.weight)\n");
    EXPECT_ERROR(make_stage({})->apply(linear, context), UnsupportedModel,
                 "no channel can be removed: a is an output of the model");
    EXPECT_ERROR(make_stage({})->check(linear, context), UnsupportedModel, "no channel can be removed");
    prune::ChannelPruningOptions options;
    options.ignore = {"conv9"};
    auto images = context_of(kExample);
    EXPECT_ERROR(prune::channel_pruning(prune::magnitude(), prune::uniform(), options)->apply(residual_model(), images),
                 InvalidArgument, "matches no layer");
    options.ignore = {"("};
    EXPECT_ERROR(prune::channel_pruning(prune::magnitude(), prune::uniform(), options), InvalidArgument,
                 "no regular expression");
    options.ignore = {"."};
    EXPECT_ERROR(prune::channel_pruning(prune::magnitude(), prune::uniform(), options)->apply(residual_model(), images),
                 UnsupportedModel, "every group matches");
}

TEST(PruneStage, TheResultTrains) {
    auto context = context_of(kExample);
    auto smaller = make_stage({{"ratio", "0.4"}, {"round_to", "1"}})->apply(residual_model(), context);
    smaller.train();
    const auto loss = first_tensor(smaller.forward({sine({4, 3, 8, 8})})).square().mean();
    loss.backward();
    for (const auto& named : named_tensors(smaller)) {
        if (named.role != Role::kParameter) continue;
        ASSERT_TRUE(named.tensor.grad().defined()) << named.name;
        EXPECT_EQ(named.tensor.grad().sizes(), named.tensor.sizes());
    }
}

TEST(PruneStage, BatchNormIsEstimatedAnewOnRequest) {
    const auto model = residual_model();
    auto without = context_of(kExample), with = context_of(kExample);
    const auto plain = make_stage({{"ratio", "0.5"}, {"round_to", "1"}})->apply(model, without);
    const auto anew = make_stage({{"ratio", "0.5"}, {"round_to", "1"}, {"bn_batches", "2"}, {"bn_batch_size", "8"}})
                          ->apply(model, with);
    EXPECT_TRUE(
        at::equal(get_attribute(plain, "conv1.weight").toTensor(), get_attribute(anew, "conv1.weight").toTensor()));
    EXPECT_GT(max_difference(get_attribute(plain, "bn1.running_mean").toTensor(),
                             get_attribute(anew, "bn1.running_mean").toTensor()),
              1e-3);
}

TEST(PruneStage, ResNet20AtHalfTheMultiplyAdds) {
    SKIP_WITHOUT_DATA("cifar10/resnet20.pt");
    const auto model = Model::load(data_path("cifar10/resnet20.pt"));
    for (const char* scope : {"uniform", "global"}) {
        for (const char* round_to : {"1", "4"}) {
            SCOPED_TRACE(std::string(scope) + ", round_to " + round_to);
            Context context;
            context.example = {sine({1, 3, 32, 32})};
            make_stage({{"macs_ratio", "0.5"}, {"scope", scope}, {"round_to", round_to}})->apply(model, context);
            const double reached =
                context.facts["macs_after"].get<double>() / context.facts["macs_before"].get<double>();
            EXPECT_LE(reached, 0.5 + 1e-9);
            EXPECT_GE(reached, 0.48);
        }
    }
}

}  // namespace
}  // namespace coppice::testing
