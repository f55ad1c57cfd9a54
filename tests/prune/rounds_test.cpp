// A pruned model is a model: saved, loaded, fine-tuned and pruned again.
#include <coppice/train.h>

#include "prune/masking.h"

namespace coppice::testing {
namespace {

std::unique_ptr<Stage> any_stage(const std::string& name, std::vector<std::pair<std::string, std::string>> settings) {
    auto rows = train_stages(builtin_losses());
    rows.insert(rows.end(), prune::stages().begin(), prune::stages().end());
    Options options(name, std::move(settings));
    auto stage = find_entry(rows, "stage", name, "test").make(options);
    options.done();
    return stage;
}

class Rounds : public ::testing::Test {
protected:
    Rounds() {
        context_.example = {sine({2, 3, 8, 8})};
        auto images = (at::arange(32 * 3 * 8 * 8, at::kDouble) * 0.7).sin().to(at::kFloat).reshape({32, 3, 8, 8});
        context_.data.train = context_.data.calibration =
            tensor_dataset({images}, at::arange(32).remainder(10), "smooth images");
    }

    /// Applies the stage to what its file gives back.
    void step(const std::string& name, std::vector<std::pair<std::string, std::string>> settings) {
        SCOPED_TRACE(name);
        context_.changes.clear();
        context_.facts = Json::object();
        const auto stage = any_stage(name, std::move(settings));
        stage->check(model_, context_);
        const auto result = stage->apply(model_, context_);
        verify(result, context_.example, name, {{2, 10}});
        result.save(folder_ / "model.pt");
        model_ = Model::load(folder_ / "model.pt");
        torch::NoGradGuard no_grad;
        EXPECT_TRUE(
            at::equal(first_tensor(model_.forward(context_.example)), first_tensor(result.forward(context_.example))));
    }

    void train(const std::string& keep_zeros = "false") {
        step("train.finetune", {{"epochs", "1"}, {"batch_size", "8"}, {"lr", "0.01"}, {"keep_zeros", keep_zeros}});
    }

    double macs() const { return cost(model_, context_.example).macs; }
    int64_t width(const char* layer) const {
        return get_attribute(model_, std::string(layer) + ".weight").toTensor().size(0);
    }

    TemporaryFolder folder_;
    Context context_;
    Model model_ = residual_model();
};

TEST_F(Rounds, ChannelsGoTwiceWithTrainingBetween) {
    const double whole = macs();
    step("prune.channel", {{"ratio", "0.25"}, {"round_to", "1"}, {"scope", "uniform"}});
    EXPECT_EQ(width("conv2"), 12);
    const double once = macs();
    train();
    EXPECT_EQ(macs(), once);
    step("prune.channel", {{"ratio", "0.5"}, {"round_to", "1"}, {"scope", "uniform"}, {"criterion", "taylor"}});
    EXPECT_EQ(width("conv2"), 6);
    EXPECT_LT(macs(), once);
    EXPECT_LT(once, whole);
    train();
}

TEST_F(Rounds, ZerosBetweenTwoCutsStayZero) {
    step("prune.channel", {{"ratio", "0.25"}, {"round_to", "1"}, {"scope", "uniform"}});
    train();
    step("prune.weight", {{"sparsity", "0.5"}, {"criterion", "sparsegpt"}});
    const auto nonzero = cost(model_, context_.example).nonzero_parameters;
    train("true");
    EXPECT_EQ(cost(model_, context_.example).nonzero_parameters, nonzero);
    step("prune.channel", {{"ratio", "0.5"}, {"round_to", "1"}, {"scope", "uniform"}});
    EXPECT_EQ(width("conv2"), 6);
    // The cut takes the channels of least norm, and so more zeros than others.
    step("prune.weight", {{"sparsity", "0.5"}});
    EXPECT_GE(context_.facts["sparsity"].get<double>(), 0.49);
    EXPECT_GT(context_.facts["zeros_before"].get<int64_t>(), 0);
    train("true");
    EXPECT_GE(context_.facts["zeros_kept"].get<double>(), 0.49);
}

}  // namespace
}  // namespace coppice::testing
