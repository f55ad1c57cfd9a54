/// The metrics that registry.cpp lists, and what they share.
#pragma once

#include <coppice/eval.h>

namespace coppice::eval {

/// Area under the ROC curve, one class against the others, mean over classes, with DeLong's interval.
std::unique_ptr<Metric> auc();
/// Mean recall over classes.
std::unique_ptr<Metric> balanced_accuracy();
/// Expected calibration error in 15 bins of equal width (arXiv 1706.04599), as a ratio.
std::unique_ptr<Metric> calibration_error();
/// Macro F1.
std::unique_ptr<Metric> f1();
/// Mean over classes of intersection / union over all positions.
std::unique_ptr<Metric> mean_iou();
/// exp of the mean cross entropy per position.
std::unique_ptr<Metric> perplexity();
/// Mean |error / target|, as a ratio; unavailable where a target is 0.
std::unique_ptr<Metric> mape();
/// Pearson's correlation of outputs and targets, or of the similarities of pairs.
std::unique_ptr<Metric> pearson();
/// 1 - squared error / variance of the targets, over all values together.
std::unique_ptr<Metric> r2();

/// Option `task`: auto (from the batch), classification, regression, similarity.
std::unique_ptr<Metric> loss_metric(Options& options);
/// Cross entropy of class scores.
std::unique_ptr<Metric> log_loss();
std::unique_ptr<Metric> mean_absolute_error();
std::unique_ptr<Metric> mean_squared_error();
std::unique_ptr<Metric> spearman();
std::unique_ptr<Metric> top_k(int64_t k);

/// Similarity of each pair: dot product of rows 2i and 2i + 1. output [2N, ...] -> [N]
at::Tensor pair_similarities(const at::Tensor& output);

/// Interval of the mean of scores [N] by a bootstrap over blocks of neighbours.
Interval score_interval(const at::Tensor& scores);

/// Ranks from 1, ties share their mean rank. values [N] -> float64 [N]
at::Tensor ranks_of(const at::Tensor& values);
/// Pearson's correlation of two vectors; 0 when either is constant.
double correlation_of(const at::Tensor& a, const at::Tensor& b);

}  // namespace coppice::eval
