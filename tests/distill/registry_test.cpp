#include "distill/losses/logits.h"

#include <coppice/train.h>

namespace coppice::testing {
namespace {

std::vector<Entry<Loss>> all_losses() {
    auto table = builtin_losses();
    const auto& own = distill::losses();
    table.insert(table.end(), own.begin(), own.end());
    return table;
}

TEST(DistillRegistry, IsSortedAndDescribed) {
    const auto names = names_of(distill::losses());
    EXPECT_TRUE(std::is_sorted(names.begin(), names.end()));
    for (const auto& row : distill::losses()) {
        EXPECT_EQ(row.name.rfind("distill.", 0), 0u) << row.name;
        EXPECT_FALSE(row.summary.empty()) << row.name;
    }
}

TEST(DistillRegistry, EveryRowMakesALossThatIsFiniteAndTrains) {
    const LogitCase c;
    for (const auto& row : distill::losses()) {
        Options options(row.name);
        const auto loss = row.make(options);
        EXPECT_TRUE(loss->needs().teacher) << row.name;
        for (const auto& asked : options.asked()) EXPECT_FALSE(asked.help.empty()) << row.name << " " << asked.name;
        EXPECT_TRUE(std::isfinite(value(*loss, c.student, c.teacher, c.batch()))) << row.name;
        const auto slope = gradient(*loss, c.student, c.teacher, c.batch());
        EXPECT_TRUE(slope.isfinite().all().item<bool>() && slope.abs().max().item<double>() > 0) << row.name;
        // A small step against the gradient lowers the loss.
        EXPECT_LT(value(*loss, c.student - slope * 1e-3, c.teacher, c.batch()),
                  value(*loss, c.student, c.teacher, c.batch()))
            << row.name;
    }
}

TEST(DistillRegistry, ReadsOptionsAndRejectsUnknownOnes) {
    const LogitCase c;
    const auto& row = find_entry(distill::losses(), "loss", "distill.kd", "test");
    Options options("distill.kd", {{"temperature", "2"}, {"alpha", "1"}});
    const auto loss = row.make(options);
    options.done();
    distill::KdOptions same;
    same.temperature = 2;
    same.alpha = 1;
    EXPECT_EQ(value(*loss, c.student, c.teacher, Batch{}), value(*distill::kd(same), c.student, c.teacher, Batch{}));
    Options wrong("distill.kd", {{"temprature", "2"}});
    row.make(wrong);
    EXPECT_ERROR(wrong.done(), InvalidArgument, "Did you mean \"temperature\"?");
    Options out_of_range("distill.kd", {{"alpha", "2"}});
    EXPECT_ERROR(row.make(out_of_range), InvalidArgument, "must be in [0.0, 1.0]");
}

TEST(DistillStages, LogitsIsFineTuningWithATeacherByDefault) {
    const auto table = distill::stages(all_losses());
    const auto& row = find_entry(table, "stage", "distill.logits", "test");
    Options options("distill.logits", {{"epochs", "3"}, {"lr", "0.05"}});
    const auto stage = row.make(options);
    options.done();
    EXPECT_TRUE(stage->needs().teacher);
    EXPECT_TRUE(stage->needs().training_data);
    EXPECT_EQ(options.resolved().at("epochs"), 3);
    EXPECT_NE(options.resolved().at("loss").dump().find("distill.logits"), std::string::npos);
}

TEST(DistillStages, LogitsTakesAnotherLossWithItsOptions) {
    const auto table = distill::stages(all_losses());
    Setting loss = Setting::map({{"distill.dkd", Setting::map({{"beta", Setting::scalar("2")}})}});
    Options options("distill.logits", Setting::map({{"loss", loss}}));
    table.front().make(options);
    options.done();
    EXPECT_EQ(options.resolved().at("loss").at("distill.dkd").at("beta"), 2.0);
}

TEST(DistillStages, LogitsRejectsUnknownOptions) {
    const auto table = distill::stages(all_losses());
    Options options("distill.logits", {{"epoch", "3"}});
    table.front().make(options);
    EXPECT_ERROR(options.done(), InvalidArgument, "Did you mean \"epochs\"?");
}

TEST(DistillStages, LogitsBringsAStudentToItsTeacher) {
    // Student and teacher are linear; without labels the student can only learn from the teacher.
    const char* source = "def forward(self, x):\n    return torch.linear(x, self.fc.weight, self.fc.bias)\n";
    const auto teacher = build_model({{"fc.weight", sine({3, 6}, 2)}, {"fc.bias", sine({3})}}, source);
    const auto student = build_model({{"fc.weight", at::zeros({3, 6})}, {"fc.bias", at::zeros({3})}}, source);
    const auto x = sine({128, 6}, 1.5);
    Context context;
    context.example = {x.slice(0, 0, 2)};
    context.baseline = &teacher;
    context.data.train = tensor_dataset({x}, at::zeros({128}, at::kLong), "sines");
    const auto table = distill::stages(all_losses());
    Setting loss = Setting::map({{"distill.logits", Setting::map({{"alpha", Setting::scalar("1")}})}});
    Options options("distill.logits", Setting::map({{"loss", loss},
                                                    {"epochs", Setting::scalar("60")},
                                                    {"batch_size", Setting::scalar("32")},
                                                    {"weight_decay", Setting::scalar("0")},
                                                    {"lr", Setting::scalar("0.1")}}));
    const auto trained = table.front().make(options)->apply(student, context);
    torch::NoGradGuard no_grad;
    const auto of = [&](const Model& model) { return first_tensor(model.forward({x})).softmax(1); };
    EXPECT_GT(max_difference(of(student), of(teacher)), 0.3);
    EXPECT_LT(max_difference(of(trained), of(teacher)), 0.03);
}

}  // namespace
}  // namespace coppice::testing
