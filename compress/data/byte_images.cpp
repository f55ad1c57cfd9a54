#include <coppice/error.h>

#include <cstring>

#include "data/formats.h"

namespace coppice::formats {

std::vector<float> byte_table(double divide, const std::vector<double>& mean, const std::vector<double>& std,
                              int64_t channels) {
    std::vector<float> table;
    table.reserve(static_cast<size_t>(channels) * 256);
    for (int64_t c = 0; c < channels; ++c) {
        const auto m = static_cast<float>(mean[mean.size() == 1 ? 0 : c]);
        const auto s = static_cast<float>(std[std.size() == 1 ? 0 : c]);
        for (int value = 0; value < 256; ++value)
            table.push_back((static_cast<float>(value) / static_cast<float>(divide) - m) / s);
    }
    return table;
}

ByteImages::ByteImages(std::vector<int64_t> shape, std::vector<uint8_t> pixels, std::vector<int64_t> labels,
                       std::vector<float> table, std::string description, std::string fingerprint)
    : shape_(std::move(shape)),
      pixels_(std::move(pixels)),
      labels_(std::move(labels)),
      table_(std::move(table)),
      description_(std::move(description)),
      fingerprint_(std::move(fingerprint)) {
    example_size_ = 1;
    for (const int64_t extent : shape_) example_size_ *= extent;
    size_ = static_cast<int64_t>(pixels_.size()) / example_size_;
    channels_ = static_cast<int64_t>(table_.size()) / 256;
}

Batch ByteImages::batch(const std::vector<int64_t>& indices) const {
    check_indices(indices, size_, description_);
    const auto count = static_cast<int64_t>(indices.size());
    std::vector<int64_t> shape = {count};
    shape.insert(shape.end(), shape_.begin(), shape_.end());
    auto images = at::empty(shape, at::kFloat);  // [N, C, H, W] or [N, D]
    float* out = images.data_ptr<float>();
    const int64_t plane = example_size_ / channels_;
    for (const int64_t index : indices) {
        const uint8_t* in = pixels_.data() + index * example_size_;
        for (int64_t c = 0; c < channels_; ++c) {
            const float* table = table_.data() + c * 256;
            for (int64_t i = 0; i < plane; ++i) out[i] = table[in[i]];
            in += plane, out += plane;
        }
    }
    Batch batch;
    batch.inputs.emplace_back(images);
    if (!labels_.empty()) {
        batch.target = at::empty({count}, at::kLong);
        int64_t* target = batch.target.data_ptr<int64_t>();
        for (const int64_t index : indices) *target++ = labels_[index];
    }
    return batch;
}

}  // namespace coppice::formats
