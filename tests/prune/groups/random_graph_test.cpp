// Blocks composed at random: whatever the groups are, a cut equals masking. COPPICE_FUZZ=1000 draws that many graphs;
// the fuzz target of tests/fuzz lets libFuzzer choose them.
#include "prune/groups/cut_graph.h"

namespace coppice::testing {
namespace {

TEST(PruneRandomGraphs, CutEqualsMasked) {
    const char* wanted = std::getenv("COPPICE_FUZZ");
    const uint64_t graphs = wanted ? std::strtoull(wanted, nullptr, 10) : 60;
    int64_t channels = 0;
    for (uint64_t seed = 1; seed <= graphs; ++seed) {
        const RandomGraph graph(decisions_of(seed));
        SCOPED_TRACE("seed " + std::to_string(seed) + "\n" + graph.source());
        try {
            const auto check = check_cut_of(graph, seed);
            EXPECT_LE(check.difference, kGraphTolerance);
            channels += check.channels;
        } catch (const std::exception& error) {
            ADD_FAILURE() << message_of(error);
        }
        if (::testing::Test::HasFailure()) return;
    }
    EXPECT_GT(channels, 20 * static_cast<int64_t>(graphs)) << "hardly anything could be pruned";
}

TEST(PruneRandomGraphs, DecisionsThatEndTakeTheFirstChoice) {
    EXPECT_EQ(RandomGraph({}).source(), RandomGraph(std::vector<uint8_t>(256, 0)).source());
    EXPECT_NE(RandomGraph({}).source(), RandomGraph({2}).source());
    EXPECT_LE(check_cut_of(RandomGraph({}), 1).difference, kGraphTolerance);
}

}  // namespace
}  // namespace coppice::testing
