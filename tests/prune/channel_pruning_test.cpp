#include "prune/allocation/synthetic.h"

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

Setting layers_of(const std::vector<std::pair<std::string, std::string>>& ratios) {
    Setting layers;
    layers.kind = Setting::Kind::kMap;
    for (const auto& [pattern, ratio] : ratios) layers.members.emplace_back(pattern, Setting::scalar(ratio));
    return layers;
}

std::unique_ptr<Stage> make_stage_of(std::vector<std::pair<std::string, Setting>> settings, Json* resolved = nullptr) {
    Options options("prune.channel", Setting::map(std::move(settings)));
    auto stage = find_entry(prune::stages(), "stage", "prune.channel", "test").make(options);
    options.done();
    if (resolved) *resolved = options.resolved();
    return stage;
}

/// As a recipe file would hold it.
Setting setting_of(const Json& json) {
    Setting setting;
    if (json.is_object()) {
        setting.kind = Setting::Kind::kMap;
        for (const auto& [key, value] : json.items()) setting.members.emplace_back(key, setting_of(value));
    } else if (json.is_array()) {
        setting.kind = Setting::Kind::kList;
        for (const auto& item : json) setting.items.push_back(setting_of(item));
    } else if (!json.is_null()) {
        setting = Setting::scalar(json.is_string() ? json.get<std::string>() : json.dump());
    }
    return setting;
}

int64_t width(const Model& model, const std::string& layer) {
    return get_attribute(model, layer + ".weight").toTensor().size(0);
}

TEST(PruneStage, LayersHaveRatiosOfTheirOwn) {
    const auto model = residual_model();
    auto context = context_of(kExample);
    // conv3 and the shortcut are added: the smaller of their shares holds for both. The last pattern beats the first.
    const auto smaller =
        make_stage_of({{"ratio", Setting::scalar("0.5")},
                       {"round_to", Setting::scalar("1")},
                       {"scope", Setting::scalar("uniform")},
                       {"layers", layers_of({{"conv", "0.875"}, {"conv1", "0"}, {"shortcut", "0.25"}})}})
            ->apply(model, context);
    EXPECT_EQ(width(smaller, "conv1"), 8);
    EXPECT_EQ(width(smaller, "conv2"), 2);
    EXPECT_EQ(width(smaller, "conv3"), 12);
    EXPECT_EQ(width(smaller, "shortcut"), 12);
}

TEST(PruneStage, LayersWithoutARatioHaveNoSayAndFollowTheTargetElsewhere) {
    auto context = context_of(kExample);
    const auto smaller = make_stage_of({{"ratio", Setting::scalar("0.5")},
                                        {"round_to", Setting::scalar("1")},
                                        {"scope", Setting::scalar("uniform")},
                                        {"layers", layers_of({{"shortcut", "0.25"}})}})
                             ->apply(residual_model(), context);
    EXPECT_EQ(width(smaller, "conv1"), 4);
    EXPECT_EQ(width(smaller, "conv2"), 8);
    EXPECT_EQ(width(smaller, "conv3"), 12);
}

TEST(PruneStage, LayersThatMatchNothingOrCannotBePrunedAreNamed) {
    const auto apply = [&](const std::string& pattern, const std::string& ratio) {
        auto context = context_of(kExample);
        make_stage_of({{"layers", layers_of({{pattern, ratio}})}})->apply(residual_model(), context);
    };
    EXPECT_ERROR(apply("conv7", "0.5"), InvalidArgument, "layers \"conv7\" matches no layer. Did you mean \"conv");
    EXPECT_ERROR(apply("fc", "0.5"), InvalidArgument,
                 "matches no layer that can be pruned: fc is an output of the model");
    EXPECT_ERROR(apply("conv1", "1.5"), InvalidArgument, "conv1 is 1.5, must be in [0, 1)");
    EXPECT_ERROR(apply("(", "0.5"), InvalidArgument, "layers holds \"(\", which is no regular expression");
    EXPECT_ERROR(make_stage({{"layers", "0.5"}}), InvalidArgument, "layers must be a map");
    apply("fc", "0");  // what cannot be pruned keeps its channels
}

TEST(PruneStage, AResolvedRecipeRunsAgain) {
    for (const char* target : {"ratio", "macs_ratio", "params_ratio", "size_ratio", "latency_ratio", "energy_ratio"}) {
        SCOPED_TRACE(target);
        Json resolved, again;
        make_stage_of({{target, Setting::scalar("0.5")},
                       {"round_to", Setting::scalar("auto")},
                       {"layers", layers_of({{"conv1", "0"}})}},
                      &resolved);
        make_stage_of(setting_of(resolved).members, &again);
        EXPECT_EQ(again.dump(1), resolved.dump(1));
        EXPECT_EQ(resolved[target], 0.5);
        EXPECT_EQ(resolved["layers"].dump(), R"({"conv1":0.0})");
        EXPECT_EQ(resolved["round_to"], "auto");
    }
}

prune::ChannelPruningOptions timed(std::shared_ptr<const prune::Stopwatch> watch, double latency_ratio) {
    prune::ChannelPruningOptions options;
    options.target.latency_ratio = latency_ratio;
    options.target.round_to = 1;
    options.stopwatch = std::move(watch);
    return options;
}

TEST(PruneStage, AShareOfTheTimeIsPredictedReachedAndMeasured) {
    const auto model = residual_model();
    for (const bool by_score_per_time : {false, true}) {
        const auto watch = std::make_shared<SyntheticWatch>(weight_elements);
        auto context = context_of(kExample);
        const auto smaller =
            prune::channel_pruning(prune::magnitude(), by_score_per_time ? prune::greedy() : prune::global(),
                                   timed(watch, 0.5))
                ->apply(model, context);
        const double reached = watch->of(smaller) / watch->of(model);
        EXPECT_LE(reached, 0.5 * 1.02);
        EXPECT_GE(reached, 0.44) << "one channel of these narrow layers is up to 6 %";
        const auto& latency = context.facts["latency"];
        EXPECT_NEAR(latency["measured_ratio"].get<double>(), reached, 1e-12);
        EXPECT_NEAR(latency["predicted_ratio"].get<double>(), reached, 1e-9) << "the formula is bilinear";
        EXPECT_EQ(latency["reached"], true);
    }
}

TEST(PruneStage, ATimeThatNoOperatorShowsIsCorrectedFor) {
    // A constant as large as all layers together: half of their time leaves three quarters.
    const auto model = residual_model();
    const double layers = SyntheticWatch(weight_elements).of(model);
    const auto watch = std::make_shared<SyntheticWatch>(weight_elements, layers);
    auto context = context_of(kExample);
    const auto smaller =
        prune::channel_pruning(prune::magnitude(), prune::greedy(), timed(watch, 0.7))->apply(model, context);
    const double reached = watch->of(smaller) / watch->of(model);
    EXPECT_LE(reached, 0.7 * 1.02);
    EXPECT_GE(reached, 0.7 * 0.93);
    EXPECT_GT(watch->ratios, 1);
    EXPECT_EQ(context.facts["latency"]["rounds"].size(), static_cast<size_t>(watch->ratios));
}

TEST(PruneStage, ATimeThatCannotBeReachedIsSaid) {
    struct Warnings final : Log {
        std::string text;
        void write(const std::string& level, const std::string& message) override {
            if (level == "warning") text += message;
        }
    } log;
    const auto model = residual_model();
    const double layers = SyntheticWatch(weight_elements).of(model);
    auto context = context_of(kExample);
    context.log = &log;
    prune::channel_pruning(prune::magnitude(), prune::greedy(),
                           timed(std::make_shared<SyntheticWatch>(weight_elements, 9 * layers), 0.8))
        ->apply(model, context);
    EXPECT_EQ(context.facts["latency"]["reached"], false);
    EXPECT_THAT(log.text, ::testing::HasSubstr("was to take 0.8 of its time and takes 0.9"));
}

TEST(PruneStage, AShareOfTheCpuSecondsStandsForEnergy) {
    const auto model = residual_model();
    const auto watch = std::make_shared<SyntheticWatch>(weight_elements);
    auto context = context_of(kExample);
    auto options = timed(watch, 0.5);
    std::swap(options.target.latency_ratio, options.target.energy_ratio);
    const auto smaller = prune::channel_pruning(prune::magnitude(), prune::greedy(), options)->apply(model, context);
    EXPECT_LE(watch->of(smaller) / watch->of(model), 0.5 * 1.02);
    EXPECT_EQ(context.facts["cpu_time"]["reached"], true);
    EXPECT_FALSE(context.facts.contains("latency"));
}

TEST(PruneStage, ACutThatBringsNoSpeedIsNotMade) {
    // The 3x3 convolutions of 16 outputs take the same time at any width, so conv2's channels and those of the stage
    // are not worth cutting: of the operators around conv2 none gets faster.
    const auto flat = [](const std::string& op, const std::vector<std::vector<int64_t>>& shapes) {
        if (op != "aten::conv2d" && op != "aten::linear") return 0.0;
        const auto& weight = shapes.at(1);
        return weight.size() == 4 && weight[1] != 3 && weight[2] == 3 ? 1000.0 : weight_elements(op, shapes);
    };
    const auto model = residual_model();
    auto context = context_of(kExample);
    prune::ChannelPruningOptions options;
    options.target.round_to = 1;
    options.only_faster = true;
    options.stopwatch = std::make_shared<SyntheticWatch>(flat);
    const auto smaller = prune::channel_pruning(prune::magnitude(), prune::uniform(), options)->apply(model, context);
    EXPECT_EQ(width(smaller, "conv2"), 16);
    bool said = false;
    for (const auto& change : context.changes) {
        if (change.layer != "conv2") continue;
        said = true;
        EXPECT_EQ(change.action, "kept");
        EXPECT_EQ(change.reason, "the cut brings no speed: the operators around it took 1.00 of their time");
    }
    EXPECT_TRUE(said);
    // With the option off it is made.
    options.only_faster = false;
    auto again = context_of(kExample);
    EXPECT_EQ(
        width(prune::channel_pruning(prune::magnitude(), prune::uniform(), options)->apply(model, again), "conv2"), 8);
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
