/// What tests share: models built in C++, error matchers, the folder of development data.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <coppice/compress.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace coppice::testing {

/// Expects `statement` to throw exactly `Type` with `fragment` in its text.
#define EXPECT_ERROR(statement, Type, fragment)                                                  \
    do {                                                                                         \
        try {                                                                                    \
            statement;                                                                           \
            ADD_FAILURE() << #statement " threw nothing, expected " #Type;                       \
        } catch (const Type& error) {                                                            \
            EXPECT_THAT(std::string(error.what()), ::testing::HasSubstr(fragment));              \
        } catch (const std::exception& error) {                                                  \
            ADD_FAILURE() << #statement " threw another error than " #Type ": " << error.what(); \
        }                                                                                        \
    } while (false)

/// Path below the folder of development data that the build names (COPPICE_TEST_DATA); a path that does not exist
/// without it.
std::filesystem::path data_path(const std::string& relative);

/// Skips the running test, by name, where a file of the development data is absent.
#define SKIP_WITHOUT_DATA(relative)                                        \
    if (!std::filesystem::exists(::coppice::testing::data_path(relative))) \
    GTEST_SKIP() << "needs the development data: " << (relative)

/// A fresh folder that vanishes with the object.
class TemporaryFolder {
public:
    TemporaryFolder();
    ~TemporaryFolder();
    TemporaryFolder(const TemporaryFolder&) = delete;
    const std::filesystem::path& path() const { return path_; }
    std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

private:
    std::filesystem::path path_;
};

/// Closed-form weights: sin(0), sin(1), ... times `scale`, in the given shape.
at::Tensor sine(at::IntArrayRef shape, double scale = 1.0);

/// A scripted module built from TorchScript source and tensors under dotted names; names that end in "running_mean",
/// "running_var" or begin with "buffer_" are buffers, floating tensors else parameters. Source speaks of `self`:
///   build({{"conv.weight", sine({8, 3, 3, 3})}}, "def forward(self, x):\n    return torch.conv2d(x,
///   self.conv.weight)\n")
/// A bool attribute `training` exists at the root and in each child.
torch::jit::Module build_module(const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                                const std::string& source);
Model build_model(const std::vector<std::pair<std::string, at::Tensor>>& tensors, const std::string& source);

/// conv-bn-relu, a residual block with projection shortcut, pool, flatten, linear: 3x8x8 images, 10 classes.
Model residual_model();

/// Largest absolute difference, infinity when shapes differ.
double max_difference(const at::Tensor& a, const at::Tensor& b);

}  // namespace coppice::testing
