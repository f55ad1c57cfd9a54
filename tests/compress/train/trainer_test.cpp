#include <limits>

#include "models.h"
#include "reference/optimizers.h"

namespace coppice::testing {
namespace {

class Recorder final : public Log {
public:
    void write(const std::string& level, const std::string& message) override {
        lines.push_back(level + ": " + message);
    }
    void progress(const std::string& task, double done, double total, const std::string& detail) override {
        ++progressed;
        last = task + " " + std::to_string(static_cast<int>(done)) + "/" + std::to_string(static_cast<int>(total)) +
               " " + detail;
    }
    void event(const Json& record) override { events.push_back(record); }
    std::vector<std::string> lines;
    std::vector<Json> events;
    std::string last;
    int progressed = 0;
};

TrainOptions quick() {
    TrainOptions options;
    options.epochs = 4, options.batch_size = 16, options.lr = 0.05, options.seed = 3;
    return options;
}

/// As the model of small_model(), as a torch::nn module.
std::pair<std::shared_ptr<SmallNet>, std::unique_ptr<Trainable>> small_net() {
    auto net = std::make_shared<SmallNet>();
    return {net, trainable(net, [net](const Inputs& inputs) { return net->forward(inputs[0].toTensor()); })};
}

}  // namespace

TEST(Trainer, LearnsATask) {
    const auto [net, module] = small_net();
    const auto data = stripes(120);
    const auto result = Trainer(quick()).fit(*module, *data, *cross_entropy());
    ASSERT_EQ(result.epochs.size(), 4u);
    EXPECT_LT(result.epochs.back().train_loss, result.epochs.front().train_loss / 2);
    EXPECT_GT(accuracy(*module, *data), 0.95);
    EXPECT_FALSE(net->is_training());
}

// Weights are the same, data, order and dropout are drawn from the same seeds, so the trajectories are the same bits:
// both run the same operators.
TEST(Trainer, TrainsTorchScriptAndTorchNnModulesAlike) {
    const auto data = stripes(60);
    for (const char* optimizer : {"sgd", "adamw"}) {
        auto options = quick();
        options.optimizer = optimizer;
        const auto [net, nn] = small_net();
        const auto script = trainable(small_model());
        const auto a = Trainer(options).fit(*nn, *data, *cross_entropy());
        const auto b = Trainer(options).fit(*script, *data, *cross_entropy());
        for (size_t i = 0; i < a.epochs.size(); ++i)
            EXPECT_DOUBLE_EQ(a.epochs[i].train_loss, b.epochs[i].train_loss) << optimizer << i;
        std::map<std::string, at::Tensor> of_net;
        for (const auto& [name, tensor] : nn->parameters()) of_net[name] = tensor;
        for (const auto& [name, tensor] : nn->buffers()) of_net[name] = tensor;
        for (const auto& [name, tensor] : script->parameters())
            EXPECT_EQ(max_difference(tensor, of_net.at(name)), 0) << name;
        for (const auto& [name, tensor] : script->buffers())
            EXPECT_EQ(max_difference(tensor, of_net.at(name)), 0) << name;
        EXPECT_GT(of_net.at("bn.running_mean").abs().sum().item<double>(), 0);
    }
}

TEST(Trainer, GivesTheSameBitsForTheSameSeedAndOthersForAnother) {
    const auto data = stripes(60);
    auto options = quick();
    options.crop_padding = 1, options.flip = true;
    const auto train = [&](uint64_t seed) {
        const auto module = trainable(small_model());
        options.seed = seed;
        Trainer(options).fit(*module, *data, *cross_entropy());
        return values(*module);
    };
    const auto first = train(1);
    torch::manual_seed(99);  // the program's own generator must not matter
    EXPECT_TRUE(bitwise_equal(train(1), first));
    EXPECT_FALSE(bitwise_equal(train(2), first));
}

TEST(Trainer, LeavesGeneratorDenormalsAndMemoryOrderAsTheyWere) {
    torch::manual_seed(5);
    const auto expected = at::rand({3});
    torch::manual_seed(5);
    const auto model = small_model();
    const auto module = trainable(model);
    Trainer(quick()).fit(*module, *stripes(30), *cross_entropy());
    EXPECT_TRUE(at::equal(at::rand({3}), expected));
    for (const auto& [name, tensor] : module->parameters()) EXPECT_TRUE(tensor.is_contiguous()) << name;
    volatile float smallest = std::numeric_limits<float>::min();
    EXPECT_GT(smallest / 2, 0.0f);
}

TEST(Trainer, FlushesDenormalsInEveryThreadWhileItTrains) {
    const auto [net, unused] = small_net();
    bool flushed = false;
    const auto module = trainable(net, [&, net = net](const Inputs& inputs) {
        const auto tiny =
            at::full({1 << 20}, std::numeric_limits<float>::min());  // long enough to be cut among threads
        flushed = (tiny * 0.5f).eq(0).all().item<bool>();
        return net->forward(inputs[0].toTensor());
    });
    auto options = quick();
    options.epochs = 1;
    Trainer(options).fit(*module, *stripes(30), *cross_entropy());
    EXPECT_TRUE(flushed);
}

TEST(Trainer, ChannelsLastReachesInputsAndWeights) {
    for (const bool on : {true, false}) {
        const auto [net, unused] = small_net();
        bool weights = false, inputs = false;
        const auto module = trainable(net, [&, net = net](const Inputs& in) {
            // A weight [4, 1, 3, 3] and images of one channel are in both orders at once; the strides tell which was
            // meant.
            weights = net->conv->weight.stride(1) == 1;
            inputs = in[0].toTensor().stride(1) == 1;
            return net->forward(in[0].toTensor());
        });
        auto options = quick();
        options.epochs = 1, options.channels_last = on;
        Trainer(options).fit(*module, *stripes(30), *cross_entropy());
        EXPECT_EQ(weights, on);
        EXPECT_EQ(inputs, on);
    }
}

TEST(Trainer, Bf16AutocastComputesInBf16AndKeepsFloatWeights) {
    const auto data = stripes(60);
    auto options = quick();
    options.autocast = "bf16";
    const auto [net, unused] = small_net();
    auto inside = at::kFloat;
    const auto nn = trainable(net, [&, net = net](const Inputs& in) {
        const auto out = net->forward(in[0].toTensor());
        inside = out.scalar_type();
        return out;
    });
    Trainer(options).fit(*nn, *data, *cross_entropy());
    EXPECT_EQ(inside, at::kBFloat16);
    EXPECT_GT(accuracy(*nn, *data), 0.9);
    const auto script = trainable(small_model());
    auto script_type = at::kFloat;
    struct Watch final : Loss {
        explicit Watch(at::ScalarType& seen) : seen(seen) {}
        at::Tensor operator()(const at::Tensor& output, const at::Tensor&, const Batch& batch) const override {
            seen = output.scalar_type();
            return at::cross_entropy_loss(output, batch.target);
        }
        at::ScalarType& seen;
    };
    const auto result = Trainer(options).fit(*script, *data, Watch(script_type));
    EXPECT_EQ(script_type, at::kFloat);  // losses see float32
    EXPECT_GT(accuracy(*script, *data), 0.9);
    for (const auto& [name, tensor] : script->parameters()) EXPECT_EQ(tensor.scalar_type(), at::kFloat) << name;
    // bf16 was in force for the TorchScript module, too: its first loss differs from that of float32 by bf16's
    // rounding.
    options.autocast = "off", options.epochs = 1;
    const auto exact = Trainer(options).fit(*trainable(small_model()), *data, *cross_entropy());
    EXPECT_NE(exact.epochs[0].train_loss, result.epochs[0].train_loss);
    EXPECT_NEAR(exact.epochs[0].train_loss, result.epochs[0].train_loss, 0.1);
}

TEST(Trainer, SmoothsLabelsAsInThePaper) {
    const auto weight = sine({2, 3}, 0.4).to(at::kDouble), inputs = sine({4, 2}).to(at::kDouble);
    const std::vector<int64_t> labels = {2, 0, 1, 1};
    std::vector<std::vector<double>> scores(4, std::vector<double>(3, 0.0));
    for (int n = 0; n < 4; ++n)
        for (int c = 0; c < 3; ++c)
            for (int i = 0; i < 2; ++i) scores[n][c] += inputs[n][i].item<double>() * weight[i][c].item<double>();
    TrainOptions options;
    options.label_smoothing = 0.2, options.batch_size = 4;
    const auto module = trainable_of(std::make_shared<LinearModule>(weight.clone()));
    const auto result =
        Trainer(options).fit(*module, *tensor_dataset({inputs}, at::tensor(labels), "four"), *cross_entropy());
    EXPECT_NEAR(result.epochs[0].train_loss, reference::cross_entropy(scores, labels, 0.2),
                1e-6);  // targets are float32
    EXPECT_ERROR(Trainer(options).fit(*module, *tensor_dataset({inputs}, inputs, "values"), *cross_entropy()),
                 InvalidArgument, "label_smoothing needs class indices");
}

TEST(Trainer, AsksTheTeacherOnTheSameAugmentedInputs) {
    struct Distance final : Loss {
        Needs needs() const override {
            Needs needs;
            needs.teacher = true;
            return needs;
        }
        at::Tensor operator()(const at::Tensor& output, const at::Tensor& teacher, const Batch& batch) const override {
            EXPECT_FALSE(teacher.requires_grad());
            return at::mse_loss(output, teacher);
        }
    };
    auto options = quick();
    options.epochs = 1, options.crop_padding = 2, options.flip = true;
    const auto [net, unused] = small_net();
    at::Tensor seen_by_student, seen_by_teacher;
    bool same = true;
    const auto module = trainable(net, [&, net = net](const Inputs& in) {
        seen_by_student = in[0].toTensor();
        same = same && at::equal(seen_by_student, seen_by_teacher);
        return net->forward(in[0].toTensor());
    });
    const auto teacher = [&](const Inputs& in) {
        seen_by_teacher = in[0].toTensor();
        return at::zeros({seen_by_teacher.size(0), 3});
    };
    Trainer(options).fit(*module, *stripes(30), Distance(), teacher);
    EXPECT_TRUE(same);
    EXPECT_ERROR(Trainer(options).fit(*module, *stripes(30), Distance()), InvalidArgument, "needs a teacher");
}

TEST(Trainer, CallsBackAndStopsWhenTold) {
    const auto [net, module] = small_net();
    int steps = 0, epochs = 0, gradients = 0, after = 0;
    at::Tensor before;
    TrainCallbacks callbacks;
    callbacks.on_step = [&](const StepInfo& info) { return ++steps < 5; };
    callbacks.on_epoch = [&](const EpochInfo& info) { return ++epochs < 10; };
    callbacks.on_gradients = [&](Trainable& m) {
        ++gradients;
        before = m.parameters()[0].second.detach().clone();
        EXPECT_TRUE(m.parameters()[0].second.grad().defined());
    };
    callbacks.after_step = [&](Trainable& m) {
        ++after;
        EXPECT_FALSE(at::equal(before, m.parameters()[0].second));
    };
    const auto result =
        Trainer(quick()).fit(*module, *stripes(48), *cross_entropy(), {}, callbacks);  // 3 steps in an epoch
    EXPECT_EQ(steps, 5);
    EXPECT_EQ(epochs, 2);
    EXPECT_EQ(gradients, 5);
    EXPECT_EQ(after, 5);
    EXPECT_EQ(result.epochs.size(), 2u);
}

TEST(Trainer, LogsProgressAndEpochsAndEvaluatesInEvalMode) {
    const auto [net, module] = small_net();
    Recorder log;
    auto options = quick();
    options.epochs = 2;
    const auto result = Trainer(options).fit(*module, *stripes(40), *cross_entropy(), {}, {}, {}, log, [&, net = net] {
        EXPECT_FALSE(net->is_training());
        return 0.75;
    });
    EXPECT_EQ(log.progressed, 6);
    EXPECT_THAT(log.last, ::testing::StartsWith("train epoch 2/2 3/3 loss "));
    ASSERT_EQ(log.lines.size(), 2u);
    EXPECT_THAT(log.lines[1], ::testing::HasSubstr("epoch 2/2: loss "));
    EXPECT_THAT(log.lines[1], ::testing::HasSubstr("metric 0.75"));
    EXPECT_EQ(log.events[1]["metric"], 0.75);
    EXPECT_EQ(result.epochs[1].metric, 0.75);
}

TEST(Trainer, EndsWithAnErrorWhenTheLossIsNotFinite) {
    const auto data =
        tensor_dataset({at::full({4, 1}, std::numeric_limits<float>::quiet_NaN())}, at::ones({4, 1}), "nan");
    const auto module = std::make_shared<LinearModule>(at::ones({1, 1}));
    EXPECT_ERROR(Trainer(TrainOptions{}).fit(*trainable_of(module), *data, *mean_squared_error()), Error,
                 "train epoch 1, step 1: the loss is not a number at lr 0.01. Lower lr");
    EXPECT_EQ(module->weight.item<float>(), 1.0f);  // the step was not taken
    // Convolutions without batch norms may have had some before deploy.
    const auto images = tensor_dataset({at::full({4, 1, 8, 8}, std::numeric_limits<float>::quiet_NaN())},
                                       at::zeros({4}, at::kLong), "nan");
    const auto message = [&](Model model) -> std::string {
        try {
            Trainer(TrainOptions{}).fit(*trainable(std::move(model)), *images, *cross_entropy());
        } catch (const Error& error) {
            return error.what();
        }
        return "no error";
    };
    const auto folded = build_model({{"conv.weight", sine({4, 1, 8, 8}, 0.5)}},
                                    "def forward(self, x):\n"
                                    "    return torch.flatten(torch.conv2d(x, self.conv.weight), 1)\n");
    EXPECT_THAT(message(folded), ::testing::HasSubstr("If deploy has folded its batch norms, train it before deploy"));
    EXPECT_THAT(message(small_model()), ::testing::Not(::testing::HasSubstr("deploy")));
}

TEST(Trainer, CanBeInterrupted) {
    const auto [net, module] = small_net();
    int polls = 0;
    EXPECT_ERROR(Trainer(quick()).fit(*module, *stripes(48), *cross_entropy(), {}, {}, {}, null_log(), {},
                                      [&] { return ++polls == 5; }),
                 Interrupted, "stopped in epoch 2, step 2");
    EXPECT_FALSE(net->is_training());
}

TEST(Trainer, NamesWhatIsWrong) {
    const auto fit = [](TrainOptions options, const std::shared_ptr<Dataset>& data) {
        const auto [net, module] = small_net();
        Trainer(options).fit(*module, *data, *cross_entropy());
    };
    auto options = quick();
    options.batch_size = 31, options.drop_last = true;
    EXPECT_ERROR(fit(options, stripes(30)), InvalidArgument, "does not fill one batch of 31");
    EXPECT_ERROR(fit(quick(), tensor_dataset({at::ones({8, 2, 8, 8})}, at::zeros({8}, at::kLong), "two channels")),
                 InvalidArgument, "train epoch 1, step 1: LibTorch refuses: ");
    EXPECT_ERROR(fit(quick(), tensor_dataset({at::ones({8, 1, 8, 8})}, at::full({8}, 3, at::kLong), "label 3 of 3")),
                 InvalidArgument, "out of bounds");
    options = quick();
    options.optimizer = "adam";
    EXPECT_ERROR(Trainer{options}, InvalidArgument, "optimizer is \"adam\". Known: sgd, adamw");
    options = quick();
    options.warmup_epochs = 5;
    EXPECT_ERROR(Trainer{options}, InvalidArgument, "warmup_epochs is 5");
    options = quick();
    options.crop_padding = 1;
    EXPECT_ERROR(fit(options, tensor_dataset({at::ones({8, 2})}, at::zeros({8}, at::kLong), "vectors")),
                 InvalidArgument, "crop_padding");
    const auto frozen = std::make_shared<LinearModule>(at::ones({1, 1}));
    frozen->weight.set_requires_grad(false);
    EXPECT_ERROR(Trainer(quick()).fit(*trainable_of(frozen), *stripes(3), *cross_entropy()), InvalidArgument,
                 "no parameter that trains");
}

TEST(TrainOptions, AreReadUnderTheirOwnNames) {
    Options options("train.finetune",
                    {{"epochs", "7"}, {"lr", "0.3"}, {"optimizer", "adamw"}, {"flip", "true"}, {"seed", "9"}});
    const auto read = TrainOptions::read(options);
    options.done();
    EXPECT_EQ(read.epochs, 7);
    EXPECT_EQ(read.lr, 0.3);
    EXPECT_EQ(read.optimizer, "adamw");
    EXPECT_TRUE(read.flip);
    EXPECT_EQ(read.seed, 9u);
    EXPECT_EQ(options.resolved()["batch_size"], 128);
    Options wrong("train.finetune", {{"optimizer", "sgdd"}});
    EXPECT_ERROR(TrainOptions::read(wrong), InvalidArgument, "Did you mean \"sgd\"?");
    Options milestones("train.finetune", {{"milestones", "3"}});
    EXPECT_ERROR(TrainOptions::read(milestones), InvalidArgument, "Set schedule: step");
}

TEST(Trainable, OfAModelTrainsParametersOfAFileSavedForInference) {
    const auto model = small_model();
    for (const auto& parameter : model.module().named_parameters()) parameter.value.set_requires_grad(false);
    const auto module = trainable(model);
    EXPECT_EQ(module->parameters().size(), 6u);
    EXPECT_EQ(module->buffers().size(), 2u);
    module->train(true);
    EXPECT_TRUE(module->forward({at::ones({2, 1, 8, 8})}).requires_grad());
}

}  // namespace coppice::testing
