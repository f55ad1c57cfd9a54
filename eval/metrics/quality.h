/// The metrics that registry.cpp lists, and what they share.
#pragma once

#include <coppice/eval.h>

namespace coppice::eval {

/// Option `task`: auto (from the batch), classification, regression, similarity.
std::unique_ptr<Metric> loss_metric(Options& options);
std::unique_ptr<Metric> mean_absolute_error();
std::unique_ptr<Metric> mean_squared_error();
std::unique_ptr<Metric> spearman();
std::unique_ptr<Metric> top_k(int64_t k);

/// Similarity of each pair: dot product of rows 2i and 2i + 1. output [2N, ...] -> [N]
at::Tensor pair_similarities(const at::Tensor& output);

/// Ranks from 1, ties share their mean rank. values [N] -> float64 [N]
at::Tensor ranks_of(const at::Tensor& values);
/// Pearson's correlation of two vectors; 0 when either is constant.
double correlation_of(const at::Tensor& a, const at::Tensor& b);

}  // namespace coppice::eval
