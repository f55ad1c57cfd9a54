// loss = noise / signal = 10^(-SQNR / 10) of the layer's own output, its input being exact. Needs no labels, and does
// not depend on how large a layer's numbers are.
#include "mixed/table.h"

namespace coppice::quantize {
namespace {

class OutputSqnr final : public Sensitivity {
public:
    std::string unit() const override { return "noise to signal power of the layer's output"; }

    std::vector<std::vector<double>> measure(const PrecisionTable& table, Context&) const override {
        std::vector<std::vector<double>> all;
        for (const auto& row : table.rows()) {
            auto& losses = all.emplace_back();
            for (const auto& trial : row.trials)
                losses.push_back(trial.noise > 0 ? trial.noise / std::max(trial.signal, 1e-300) : 0);
        }
        return all;
    }
};

}  // namespace

std::unique_ptr<Sensitivity> output_sqnr() {
    return std::make_unique<OutputSqnr>();
}

}  // namespace coppice::quantize
