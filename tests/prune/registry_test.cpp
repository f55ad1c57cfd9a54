#include "prune/masking.h"

namespace coppice::testing {
namespace {

template <typename T>
void expect_sorted_and_described(const std::vector<Entry<T>>& table) {
    for (size_t i = 0; i < table.size(); ++i) {
        EXPECT_FALSE(table[i].summary.empty()) << table[i].name;
        if (i > 0) {
            EXPECT_LT(table[i - 1].name, table[i].name);
        }
        Options options(table[i].name);
        EXPECT_NE(table[i].make(options), nullptr) << table[i].name;
    }
}

TEST(PruneRegistry, TablesAreSortedAndEveryRowMakesSomething) {
    expect_sorted_and_described(prune::criteria());
    expect_sorted_and_described(prune::allocations());
    expect_sorted_and_described(prune::stages());
}

TEST(PruneRegistry, NeedsComeFromTheCriterionAndFromBatchNorm) {
    EXPECT_FALSE(make_stage({})->needs().calibration_data);
    EXPECT_TRUE(make_stage({{"criterion", "taylor"}})->needs().labels);
    EXPECT_TRUE(make_stage({{"bn_batches", "4"}})->needs().calibration_data);
}

TEST(PruneRegistry, MistakesAreNamed) {
    EXPECT_ERROR(make_stage({{"criterion", "taylr"}}), InvalidArgument, "Did you mean \"taylor\"");
    EXPECT_ERROR(make_stage({{"scope", "locally"}}), InvalidArgument, "scope");
    EXPECT_ERROR(make_stage({{"ratio", "1.2"}}), InvalidArgument, "ratio is 1.2, must be in [0, 1)");
    EXPECT_ERROR(make_stage({{"macs_ratio", "0"}}), InvalidArgument, "macs_ratio is 0");
    EXPECT_ERROR(make_stage({{"ratio", "0.5"}, {"macs_ratio", "0.5"}}), InvalidArgument, "both given");
    EXPECT_ERROR(make_stage({{"max_ratio", "1"}}), InvalidArgument, "max_ratio is 1");
    EXPECT_ERROR(make_stage({{"round", "8"}}), InvalidArgument, "round_to");
    EXPECT_ERROR(make_stage({{"round_to", "0"}}), InvalidArgument, "round_to is 0, must be in [1, 1024]");
    EXPECT_ERROR(make_stage({{"round_to", "fast"}}), InvalidArgument, "must be a whole number or auto");
}

}  // namespace
}  // namespace coppice::testing
