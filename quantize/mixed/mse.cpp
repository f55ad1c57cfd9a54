// loss = mean of (y - y')^2 over the layer's own output, its input being exact.
#include "mixed/table.h"

namespace coppice::quantize {
namespace {

class OutputMse final : public Sensitivity {
public:
    std::string unit() const override { return "mean squared error of the layer's output"; }

    std::vector<std::vector<double>> measure(const PrecisionTable& table, Context&) const override {
        std::vector<std::vector<double>> all;
        for (const auto& row : table.rows()) {
            auto& losses = all.emplace_back();
            for (const auto& trial : row.trials) losses.push_back(trial.noise / std::max(trial.values, 1.0));
        }
        return all;
    }
};

}  // namespace

std::unique_ptr<Sensitivity> output_mse() {
    return std::make_unique<OutputMse>();
}

}  // namespace coppice::quantize
