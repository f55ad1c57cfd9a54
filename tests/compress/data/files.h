/// Small data files for tests, and options from text.
#pragma once

#include <coppice/data.h>

#include <fstream>
#include <string>

#include "support/support.h"

namespace coppice::testing {

inline void write_file(const std::filesystem::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

/// A list setting: list({"0", "5"}).
inline Setting list(const std::vector<std::string>& texts) {
    Setting setting;
    setting.kind = Setting::Kind::kList;
    for (const auto& text : texts) setting.items.push_back(Setting::scalar(text));
    return setting;
}

/// One split of a format, opened from its options.
inline std::unique_ptr<Dataset> open_format(const std::string& format,
                                            std::vector<std::pair<std::string, Setting>> members) {
    Options options("data.test", Setting::map(std::move(members)));
    auto dataset = find_entry(dataset_formats(), "format", format, "test").make(options);
    options.done();
    return dataset;
}

/// `count` CIFAR records; label of image i: i mod 10, pixel p of it: (7 i + 3 p) mod 256.
inline std::string cifar_records(int count, int first = 0) {
    std::string bytes;
    for (int i = first; i < first + count; ++i) {
        bytes += static_cast<char>(i % 10);
        for (int p = 0; p < 3072; ++p) bytes += static_cast<char>((7 * i + 3 * p) % 256);
    }
    return bytes;
}

inline std::string idx_bytes(const std::vector<int>& shape, const std::string& data) {
    std::string bytes = {0, 0, 8, static_cast<char>(shape.size())};
    for (const int extent : shape)
        for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(extent >> shift & 255);
    return bytes + data;
}

inline void write_tensors(const std::filesystem::path& path,
                          const std::vector<std::pair<std::string, at::Tensor>>& tensors) {
    c10::Dict<std::string, at::Tensor> dict;
    for (const auto& [name, tensor] : tensors) dict.insert(name, tensor);
    const auto bytes = torch::pickle_save(dict);
    write_file(path, {bytes.begin(), bytes.end()});
}

}  // namespace coppice::testing
