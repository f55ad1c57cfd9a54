#include "prune/masking.h"

namespace coppice::testing {
namespace {

using prune::Removal;

/// The residual model before it was trained: other values everywhere.
Model early_model() {
    Model early = residual_model();
    for (const auto& named : named_tensors(early))
        if (named.tensor.is_floating_point()) set_tensor(early, named.name, named.tensor.detach() * 0.5 + 0.25);
    return early;
}

TEST(Rewind, EverySurvivingWeightHasItsEarlyValue) {
    const auto model = residual_model(), early = early_model();
    TemporaryFolder folder;
    early.save(folder / "early.pt");
    Context context;
    context.example = {sine({2, 3, 8, 8})};
    context.base_dir = folder.path();
    const auto stage =
        make_stage({{"scope", "uniform"}, {"ratio", "0.5"}, {"round_to", "1"}, {"rewind_to", "early.pt"}});
    stage->check(model, context);
    const auto ticket = stage->apply(model, context);

    // Which channels go is decided by the trained model: the half of conv2's with the smaller norm of everything that
    // vanishes with them.
    const auto square = [&](const std::string& name, int64_t dim) {
        const auto t = get_attribute(model, name).toTensor().to(at::kDouble).movedim(dim, 0);
        return t.reshape({t.size(0), -1}).square().sum(1);
    };
    const auto score =
        square("conv2.weight", 0) + square("bn2.weight", 0) + square("bn2.bias", 0) + square("conv3.weight", 1);
    const auto kept = std::get<0>(std::get<1>(score.topk(8)).sort());
    for (const auto& [name, dim] : {std::pair{"bn2.weight", 0}, std::pair{"bn2.bias", 0},
                                    std::pair{"bn2.running_mean", 0}, std::pair{"bn2.running_var", 0}})
        EXPECT_TRUE(at::equal(get_attribute(ticket, name).toTensor(),
                              get_attribute(early, name).toTensor().index_select(dim, kept)))
            << name;
    // conv2 reads what is left of conv1: each of its weights is one of the early model's, in the kept rows.
    const auto rows = get_attribute(early, "conv2.weight").toTensor().index_select(0, kept);  // [8, 8, 3, 3]
    const auto found = get_attribute(ticket, "conv2.weight").toTensor();                      // [8, 4, 3, 3]
    ASSERT_EQ(found.size(1), 4);
    for (int64_t i = 0; i < 4; ++i) {
        int64_t matches = 0;
        for (int64_t j = 0; j < rows.size(1); ++j) matches += at::equal(found.select(1, i), rows.select(1, j));
        EXPECT_EQ(matches, 1) << i;
    }
    EXPECT_TRUE(context.facts["removed"].contains("conv2")) << context.facts.dump();
}

TEST(Rewind, RefusesAnotherArchitecture) {
    const auto model = residual_model();
    const Inputs example = {sine({2, 3, 8, 8})};
    const auto facts = Facts::observe(model, example);
    const auto groups = prune::find_groups(model, facts);
    const auto removal = random_removal(groups, 0.5, 1);
    const auto smaller = prune::cut(model, facts, groups, removal);
    EXPECT_ERROR(prune::rewind(model, smaller, example, removal), InvalidArgument, "another shape or type");
    const auto linear = build_model({{"a.weight", sine({12, 6}, 0.4)}},
                                    "def forward(self, x):\n    return torch.linear(x, self.a.weight)\n");
    EXPECT_ERROR(prune::rewind(model, linear, example, removal), InvalidArgument,
                 "the early model has no conv1.weight");
    Context context;
    context.example = example;
    EXPECT_ERROR(make_stage({{"rewind_to", "none.pt"}})->check(model, context), InvalidArgument,
                 "none.pt is not there");
}

}  // namespace
}  // namespace coppice::testing
