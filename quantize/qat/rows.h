/// Private to qat/: values in memory, by scale.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>

namespace coppice::quantize {

/// Memory in rows that share a scale: the whole tensor in pieces for one scale, else [channels, ...] in order. Work on
/// rows runs on several threads; what is summed per row and then in order has the same bits on any number of them.
struct Rows {
    int64_t length, count, total, channels;
    Rows(const at::Tensor& values, int64_t channel, int64_t channels);
    template <typename Work>  // work(row, its channel, place of its first value, number of values)
    void each(const Work& work) const {
        at::parallel_for(0, count, std::max<int64_t>(1, kPiece / length), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row)
                work(row, row % channels, row * length, std::min(length, total - row * length));
        });
    }
    static constexpr int64_t kPiece = 32768;  ///< four rows of floats fit a level 2 cache
};

/// `values` as Rows reads it: with one scale any order in memory does.
at::Tensor in_rows(const at::Tensor& values, int64_t channel);

}  // namespace coppice::quantize
