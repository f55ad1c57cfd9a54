#include <cmath>

#include "files.h"

namespace coppice::testing {
namespace {

class Csv : public ::testing::Test {
protected:
    std::unique_ptr<Dataset> open(const std::string& text, std::vector<std::pair<std::string, Setting>> members = {}) {
        write_file(folder_ / "s.csv", text);
        members.emplace_back("path", Setting::scalar((folder_ / "s.csv").string()));
        const auto absent = [&](const char* name) {
            return std::none_of(members.begin(), members.end(), [&](const auto& m) { return m.first == name; });
        };
        if (absent("input_length")) members.emplace_back("input_length", Setting::scalar("2"));
        if (absent("horizon")) members.emplace_back("horizon", Setting::scalar("1"));
        return open_format("csv", std::move(members));
    }
    TemporaryFolder folder_;
};

const char* kSeries =
    "date,a,b\n2016-07-01,1,10\n2016-07-02,2,20\r\n2016-07-03,3,30\n2016-07-04,4,40\n2016-07-05,5,50\n";

}  // namespace

TEST_F(Csv, WindowsAreInputRowsAndTheRowsBehindThem) {
    const auto data = open(kSeries);
    ASSERT_EQ(data->size(), 3);  // 5 rows, windows of 3
    const auto batch = data->batch({2, 0});
    EXPECT_TRUE(at::equal(batch.inputs[0].toTensor(),
                          at::tensor({3., 30., 4., 40., 1., 10., 2., 20.}).to(at::kFloat).reshape({2, 2, 2})));
    EXPECT_TRUE(at::equal(batch.target, at::tensor({5., 50., 3., 30.}).to(at::kFloat).reshape({2, 1, 2})));
}

TEST_F(Csv, SplitsReachBackByTheInputLength) {
    const auto data = open(kSeries, {{"rows", list({"3", "5"})}, {"columns", list({"b"})}, {"targets", list({"a"})}});
    ASSERT_EQ(data->size(), 2);  // rows 3 and 4 are forecast, the first from rows 1 and 2
    const auto batch = data->batch({0, 1});
    EXPECT_TRUE(
        at::equal(batch.inputs[0].toTensor(), at::tensor({20., 30., 30., 40.}).to(at::kFloat).reshape({2, 2, 1})));
    EXPECT_TRUE(at::equal(batch.target, at::tensor({4., 5.}).to(at::kFloat).reshape({2, 1, 1})));
}

TEST_F(Csv, StandardisesByThePopulationOfTheGivenRows) {
    const auto data = open("x\n1\n3\n5\n7\n9\n", {{"standardise", list({"0", "3"})}, {"stride", Setting::scalar("2")}});
    ASSERT_EQ(data->size(), 2);                     // windows at rows 0 and 2
    const double deviation = std::sqrt(8.0 / 3.0);  // of 1, 3, 5: mean 3, squares 4 + 0 + 4
    const auto batch = data->batch({1});
    EXPECT_FLOAT_EQ(batch.inputs[0].toTensor()[0][0][0].item<float>(), static_cast<float>(2 / deviation));
    EXPECT_FLOAT_EQ(batch.target[0][0][0].item<float>(), static_cast<float>(6 / deviation));
}

TEST_F(Csv, WorksWithoutHeaderWithQuotesAndOtherDelimiters) {
    const auto data = open("1;\"2\"\n3;4\n5;6\n", {{"delimiter", Setting::scalar(";")}, {"columns", list({"1"})}});
    EXPECT_TRUE(
        at::equal(data->batch({0}).inputs[0].toTensor(), at::tensor({2., 4.}).to(at::kFloat).reshape({1, 2, 1})));
}

TEST_F(Csv, SaysWhatIsWrong) {
    EXPECT_ERROR(open(""), IoError, "holds no row of values");
    EXPECT_ERROR(open("a,b\n"), IoError, "holds no row of values");
    EXPECT_ERROR(open("a,b\nx,y\n"), IoError, "has no column of numbers");
    EXPECT_ERROR(open("date,a\nx,1\nx,2,3\n"), IoError, "line 3: has 3 columns, the first line 2");
    EXPECT_ERROR(open("a\n1\n2\nNaN\n4\n"), IoError, "line 4: column a is \"NaN\", no number");
    EXPECT_ERROR(open("a\n1\n2\n"), InvalidArgument, "leave 2 rows, one window takes 3");
    EXPECT_ERROR(open(kSeries, {{"columns", list({"c"})}}), InvalidArgument, "Columns present: date, a, b");
    EXPECT_ERROR(open(kSeries, {{"standardise", list({"0", "6"})}}), InvalidArgument, "within the 5 rows");
    EXPECT_ERROR(open(kSeries, {{"columns", list({"date"})}}), IoError, "column date is \"2016-07-01\", no number");
}

TEST(RealCsv, Etth1HasTheWindowsOfItsReadme) {
    SKIP_WITHOUT_DATA("etth1/ETTh1.csv");
    const auto data = open_format("csv", {{"path", Setting::scalar(data_path("etth1/ETTh1.csv").string())},
                                          {"standardise", list({"0", "8640"})},
                                          {"rows", list({"11520", "14400"})}});
    EXPECT_EQ(data->size(), 2785);
    const auto batch = data->batch({0, 2784});
    EXPECT_EQ(batch.inputs[0].toTensor().sizes(), (std::vector<int64_t>{2, 96, 7}));
    EXPECT_EQ(batch.target.sizes(), (std::vector<int64_t>{2, 96, 7}));
    // Input and target are one series: the last window's input is the target of the window 96 rows before.
    EXPECT_TRUE(at::equal(data->batch({96}).inputs[0].toTensor(), data->batch({0}).target));
}

}  // namespace coppice::testing
