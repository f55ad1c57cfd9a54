// libFuzzer target: blocks composed as the input's bytes decide; a cut must equal masking. The first byte seeds the
// choice of channels. Built by cmake --preset fuzz (Clang) and cmake --build --preset fuzz; run:
// build-fuzz/bin/fuzz_prune_graphs -max_len=96 -timeout=60 CORPUS_FOLDER
#include <cstdio>
#include <cstdlib>

#include "prune/groups/cut_graph.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    using namespace coppice::testing;
    const uint64_t seed = size > 0 ? data[0] : 0;
    const RandomGraph graph(std::vector<uint8_t>(data + (size > 0 ? 1 : 0), data + size));
    std::string problem;
    try {
        const double difference = check_cut_of(graph, seed).difference;
        if (!(difference <= kGraphTolerance)) problem = "the cut differs from masking by " + std::to_string(difference);
    } catch (const std::exception& error) {
        problem = coppice::message_of(error);
    }
    if (problem.empty()) return 0;
    std::fprintf(stderr, "%s\nseed %llu\n%s", problem.c_str(), static_cast<unsigned long long>(seed),
                 graph.source().c_str());
    std::abort();
}
