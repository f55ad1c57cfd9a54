#include <numeric>
#include <set>

#include "files.h"

namespace coppice::testing {
namespace {

std::shared_ptr<Dataset> numbers(int64_t size) {
    return tensor_dataset({at::arange(size).to(at::kFloat)}, at::arange(size), "numbers");
}

std::vector<int64_t> order(BatchIterator iterator) {
    std::vector<int64_t> seen;
    while (auto batch = iterator.next())
        for (int64_t i = 0; i < batch->examples(); ++i) seen.push_back(batch->target[i].item<int64_t>());
    return seen;
}

}  // namespace

TEST(BatchIterator, GivesEveryExampleOnceAndTheRestInTheLastBatch) {
    const auto data = numbers(10);
    BatchIterator iterator(*data, 4, true, 3);
    EXPECT_EQ(iterator.batches(), 3);
    std::vector<int64_t> sizes;
    std::set<int64_t> seen;
    while (auto batch = iterator.next()) {
        sizes.push_back(batch->examples());
        EXPECT_TRUE(at::equal(batch->inputs[0].toTensor().to(at::kLong), batch->target));
        for (int64_t i = 0; i < batch->examples(); ++i) seen.insert(batch->target[i].item<int64_t>());
    }
    EXPECT_EQ(sizes, (std::vector<int64_t>{4, 4, 2}));
    EXPECT_EQ(seen.size(), 10u);
}

TEST(BatchIterator, DropsTheRestWhenAsked) {
    const auto data = numbers(10);
    BatchIterator iterator(*data, 4, false, 0, 0, true);
    EXPECT_EQ(iterator.batches(), 2);
    EXPECT_EQ(order(iterator), (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7}));
}

TEST(BatchIterator, OrderDependsOnSeedAndEpochOnly) {
    const auto data = numbers(100);
    const auto first = order({*data, 7, true, 5, 2});
    EXPECT_EQ(order({*data, 9, true, 5, 2}), first);
    EXPECT_NE(order({*data, 7, true, 5, 3}), first);
    EXPECT_NE(order({*data, 7, true, 6, 2}), first);
    EXPECT_ERROR(BatchIterator(*data, 0), InvalidArgument, "at least 1");
}

// Worked out beside the library in Python: splitmix64 by its published definition, Fisher-Yates from the end, numbers
// above the largest multiple of the bound drawn again. The order must never change: resumed trainings and manifests
// rely on it.
TEST(BatchIterator, OrderIsThatOfSplitmixOnEveryMachine) {
    const auto data = numbers(10);
    EXPECT_EQ(order({*data, 10, true, 0, 0}), (std::vector<int64_t>{5, 4, 6, 1, 7, 2, 8, 3, 9, 0}));
    EXPECT_EQ(order({*data, 10, true, 42, 3}), (std::vector<int64_t>{3, 0, 7, 8, 9, 2, 1, 6, 4, 5}));
}

TEST(Calibration, DrawsWithoutReplacementBySeed) {
    const auto data = numbers(50);
    const auto a = calibration_subset(data, 20, 1);
    EXPECT_EQ(a->size(), 20);
    std::vector<int64_t> all(20);
    std::iota(all.begin(), all.end(), 0);
    const auto seen = a->batch(all).target;
    EXPECT_EQ(std::get<0>(at::_unique(seen)).numel(), 20);
    EXPECT_TRUE(at::equal(calibration_subset(data, 20, 1)->batch(all).target, seen));
    EXPECT_FALSE(at::equal(calibration_subset(data, 20, 2)->batch(all).target, seen));
    EXPECT_EQ(calibration_subset(data, 80, 1)->size(), 50);
    EXPECT_EQ(calibration_subset(data, 20, 1)->fingerprint(), a->fingerprint());
    EXPECT_NE(calibration_subset(data, 20, 2)->fingerprint(), a->fingerprint());
    EXPECT_ERROR(calibration_subset(data, 0, 1), InvalidArgument, "at least 1");
}

TEST(Subset, MapsIndices) {
    const auto part = subset(numbers(10), {7, 3, 3});
    EXPECT_EQ(part->description(), "3 examples of numbers");
    EXPECT_TRUE(at::equal(part->batch({2, 0}).target, at::tensor({3, 7}, at::kLong)));
    EXPECT_ERROR(subset(numbers(10), {10}), InvalidArgument, "Examples are 0 to 9");
    EXPECT_ERROR(part->batch({3}), InvalidArgument, "Examples are 0 to 2");
}

TEST(TensorDataset, RefusesTensorsOfDifferentLengths) {
    EXPECT_ERROR(tensor_dataset({at::ones({3}), at::ones({4})}, {}, "d"), InvalidArgument,
                 "input 1 holds another number");
    EXPECT_ERROR(tensor_dataset({at::ones({3})}, at::ones({2}), "d"), InvalidArgument,
                 "the target holds another number");
    EXPECT_ERROR(tensor_dataset({}, {}, "d"), InvalidArgument, "has no input");
    EXPECT_NE(tensor_dataset({at::ones({3})}, {}, "d")->fingerprint(),
              tensor_dataset({at::zeros({3})}, {}, "d")->fingerprint());
}

}  // namespace coppice::testing
