// Uniform scores in [0, 1): what a criterion has to beat, and the seeds of tests that cut at random.
#include "criteria/criteria.h"

namespace coppice::prune {
namespace {

class Random final : public Criterion {
public:
    explicit Random(uint64_t seed) : seed_(seed) {}

    std::vector<at::Tensor> scores(const Model&, const Groups& groups, Context&) const override {
        auto generator = at::detail::createCPUGenerator(seed_);
        std::vector<at::Tensor> scores;
        for (const auto& group : groups.all()) scores.push_back(at::rand({group.channels}, generator, at::kDouble));
        return scores;
    }

private:
    const uint64_t seed_;
};

}  // namespace

std::unique_ptr<Criterion> random_scores(uint64_t seed) {
    return std::make_unique<Random>(seed);
}

}  // namespace coppice::prune
