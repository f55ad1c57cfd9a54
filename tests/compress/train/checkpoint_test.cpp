#include <fstream>

#include "models.h"

namespace coppice::testing {
namespace {

TrainOptions options_with(const std::string& optimizer) {
    TrainOptions options;
    options.epochs = 4, options.batch_size = 16, options.lr = 0.05, options.seed = 11, options.optimizer = optimizer;
    options.crop_padding = 1, options.flip = true, options.warmup_epochs = 1;
    return options;
}

}  // namespace

TEST(Checkpoint, ResumingGivesTheBitsOfAnUninterruptedRun) {
    const auto data = stripes(60);
    for (const char* optimizer : {"sgd", "adamw"}) {
        const TemporaryFolder folder;
        const auto options = options_with(optimizer);
        const auto whole = trainable(small_model());
        const auto expected = Trainer(options).fit(*whole, *data, *cross_entropy());

        // Interrupted in the middle of the third epoch, continued in a new object from the file alone.
        const auto first = trainable(small_model());
        int polls = 0;
        EXPECT_ERROR(Trainer(options).fit(*first, *data, *cross_entropy(), {}, {}, folder / "c.pt", null_log(), {},
                                          [&] { return ++polls == 11; }),
                     Interrupted, "epoch 3");
        const auto second = trainable(small_model());
        const auto result = Trainer(options).fit(*second, *data, *cross_entropy(), {}, {}, folder / "c.pt");
        EXPECT_TRUE(result.resumed);
        EXPECT_TRUE(bitwise_equal(values(*second), values(*whole))) << optimizer;
        ASSERT_EQ(result.epochs.size(), 4u);
        for (size_t i = 0; i < 4; ++i) {
            EXPECT_EQ(result.epochs[i].epoch, static_cast<int64_t>(i));
            EXPECT_EQ(result.epochs[i].train_loss, expected.epochs[i].train_loss) << i;
            EXPECT_EQ(result.epochs[i].lr, expected.epochs[i].lr) << i;
        }
        // Once more: nothing is left to do, and the weights are those of the end.
        const auto third = trainable(small_model());
        EXPECT_EQ(Trainer(options).fit(*third, *data, *cross_entropy(), {}, {}, folder / "c.pt").epochs.size(), 4u);
        EXPECT_TRUE(bitwise_equal(values(*third), values(*whole)));
        EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder.path()), {}), 1)
            << "temporary files are left";
    }
}

TEST(Checkpoint, ResumesTorchNnModulesAndAStoppedRunStaysStopped) {
    const TemporaryFolder folder;
    const auto data = stripes(60);
    const auto net = [] {
        auto module = std::make_shared<SmallNet>();
        return trainable(module, [module](const Inputs& inputs) { return module->forward(inputs[0].toTensor()); });
    };
    TrainCallbacks callbacks;
    callbacks.on_epoch = [](const EpochInfo& info) { return info.epoch < 1; };
    const auto first = net();
    Trainer(options_with("sgd")).fit(*first, *data, *cross_entropy(), {}, callbacks, folder / "c.pt");
    const auto second = net();
    const auto result = Trainer(options_with("sgd")).fit(*second, *data, *cross_entropy(), {}, {}, folder / "c.pt");
    EXPECT_EQ(result.epochs.size(), 2u);
    EXPECT_TRUE(bitwise_equal(values(*first), values(*second)));
}

TEST(Checkpoint, IsWrittenEveryFewEpochsAndAtTheEnd) {
    const TemporaryFolder folder;
    auto options = options_with("sgd");
    options.checkpoint_every_epochs = 3;
    std::vector<bool> there;
    TrainCallbacks callbacks;
    callbacks.on_epoch = [&](const EpochInfo&) {
        there.push_back(std::filesystem::exists(folder / "c.pt"));
        return true;
    };
    const auto module = trainable(small_model());
    Trainer(options).fit(*module, *stripes(30), *cross_entropy(), {}, callbacks, folder / "c.pt");
    EXPECT_EQ(there, (std::vector<bool>{false, false, false, true}));  // before the third was written; before the last
    const auto again = trainable(small_model());
    EXPECT_EQ(Trainer(options).fit(*again, *stripes(30), *cross_entropy(), {}, {}, folder / "c.pt").epochs.size(), 4u);
}

TEST(Checkpoint, OfAnotherTrainingIsRefusedAndChangesNothing) {
    const TemporaryFolder folder;
    const auto data = stripes(30);
    const auto module = trainable(small_model());
    Trainer(options_with("sgd")).fit(*module, *data, *cross_entropy(), {}, {}, folder / "c.pt");
    const auto fresh = trainable(small_model());
    const auto before = values(*fresh);
    const auto resume = [&](TrainOptions options, const Dataset& with) {
        Trainer(options).fit(*fresh, with, *cross_entropy(), {}, {}, folder / "c.pt");
    };
    auto options = options_with("sgd");
    options.lr = 0.06;
    EXPECT_ERROR(resume(options, *data), InvalidArgument, "was written with lr 0.05, now it is 0.06. Delete it");
    EXPECT_ERROR(resume(options_with("sgd"), *stripes(33)), InvalidArgument, "training on other data");
    EXPECT_TRUE(bitwise_equal(values(*fresh), before));
    const auto other = trainable(std::make_shared<LinearModule>(at::ones({64, 3}).set_requires_grad(true)),
                                 [](const Inputs& in) { return in[0].toTensor(); });
    EXPECT_ERROR(Trainer(options_with("sgd")).fit(*other, *data, *cross_entropy(), {}, {}, folder / "c.pt"),
                 InvalidArgument, "of another model");
    std::ofstream(folder / "c.pt") << "garbage";
    EXPECT_ERROR(resume(options_with("sgd"), *data), IoError, "is no checkpoint");
}

}  // namespace coppice::testing
