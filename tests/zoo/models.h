/// The third-party architectures and real models of the development data, with the inputs they take.
#pragma once

#include <coppice/model.h>

#include <string>
#include <vector>

namespace coppice::testing {

struct InputSpec {
    std::vector<int64_t> shape;
    at::ScalarType dtype;
};

struct ZooModel {
    std::string file;  ///< below data_path("zoo"), or a path with a folder below data_path("")
    std::vector<InputSpec> inputs;
    int64_t parameters;  ///< as its exporter counted; 0: unknown
};

/// 70 architectures of torchvision, timm and transformers.
const std::vector<ZooModel>& zoo_models();
/// Eight models with real weights.
const std::vector<ZooModel>& real_models();

std::string zoo_path(const ZooModel& model);
/// Smooth floats; token ids below 500, a second integer input is a mask of ones, cora's edge list stays below its node
/// count.
Inputs zoo_inputs(const ZooModel& model, int64_t repeat_batch = 1);
/// "tv_resnet18.script": a name GoogleTest accepts.
std::string test_name(const std::string& file);
/// Reason why a file is refused, from tests/zoo/expectations; empty: it must work.
std::string expected_refusal(const std::string& file);
/// Expects tests/zoo/`file` to be `table`; with COPPICE_UPDATE_GOLDEN it is written instead, and the test skipped.
void expect_table(const std::string& file, const std::string& table);

}  // namespace coppice::testing
