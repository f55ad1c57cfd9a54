// What quantize.mixed chooses from: every layer of a model in every precision that it can have.
#pragma once

#include <string>
#include <vector>

#include <coppice/quantize.h>

#include "layers/layers.h"
#include "plan/plan.h"

namespace coppice::quantize {

/// A layer in one precision.
struct Trial {
    std::string precision;                     ///< "float", "static", "dynamic", "int8", ...
    const Form* form = nullptr;                ///< null: float or static
    double signal = 0, noise = 0;              ///< squares of its output and of its error on the sample, summed
    double values = 0;                         ///< elements of its output
    Range range = {};                          ///< of its input: seen on the sample, in static what the integers cover
    std::optional<double> clipped_ratio = {};  ///< static: share of its input outside of that
    int64_t bytes = 0;                         ///< of its weights with their scales
    double bops = 0;                           ///< multiply-adds on the example times bits of both operands
    double seconds = 0;                        ///< alone on the example, once measure_seconds() has run
    double sqnr_db() const;
};

struct TableRow {
    Layer layer;
    double macs = 0;
    std::vector<Trial> trials;                                 ///< the first is float
    std::vector<std::pair<std::string, std::string>> refused;  ///< precision, reason
};

class PrecisionTable {
public:
    struct Settings {
        const char* where;
        std::vector<std::string> precisions;  ///< beside float
        std::shared_ptr<const Rounding> rounding;
        std::vector<std::string> ignore;
        double min_sqnr_db;
        int64_t batches, batch_size;  ///< for ranges and moments
        int64_t examples;             ///< of the sample, on which errors are measured
        bool calibrates;              ///< ranges or moments are needed: without data inputs are made
    };

    /// @throws UnsupportedModel when no layer has another precision than float
    PrecisionTable(const Model& model, Settings settings, Context& context);

    const std::vector<TableRow>& rows() const { return rows_; }
    /// The model whose nodes the rows hold: batch norms folded.
    const Model& prepared() const { return prepared_; }
    /// Examples with their targets; without targets when there is no data.
    const Batch& sample() const { return sample_; }

    /// Output of the model for the sample when one layer has a precision, all others float.
    c10::IValue model_output(size_t row, size_t trial) const;
    /// The layer's weights rounded to a precision, one per weight_values().
    std::vector<at::Tensor> weights(size_t row, size_t trial) const;

    void measure_seconds(const Timer& timer, Context& context);

    struct Built {
        Model model;
        std::vector<std::string> details;  ///< per row, what a report says
    };
    /// @param trials  one per row
    Built build(const std::vector<size_t>& trials) const;

    /// Of fold_batch_norm.
    const std::vector<LayerChange>& folded() const { return folded_; }

private:
    const Unit* static_unit(const Layer& layer) const;
    void find_precisions(Context& context);
    void measure_errors(Context& context);

    Settings settings_;
    Model model_, prepared_;
    Inputs example_;
    Batch sample_;
    Calibration calibration_;
    StaticOptions static_options_;
    std::optional<StaticPlan> plan_;  ///< all of it in static int8
    std::string why_no_static_;
    std::vector<std::pair<std::string, std::unique_ptr<Form>>> forms_;
    std::vector<TableRow> rows_;
    std::vector<LayerChange> folded_;
};

}  // namespace coppice::quantize
