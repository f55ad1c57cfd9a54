// Seconds that finding the groups of a model and cutting half of every group take.
//
//   prune_groups REPEATS MODEL.pt SHAPE [MODEL.pt SHAPE ...]       SHAPE as 1,3,224,224
//
// One line of JSON per model: medians over REPEATS of the run over the example that gives the shapes, of the search for
// groups, of the scores (magnitude) with the allocation, and of the cut. tests/peers/torch_pruning_speed.py runs it
// side by side with Torch-Pruning.
#include <coppice/prune.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <sstream>

namespace {

using coppice::Json;

double now_s() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc < 4 || argc % 2 != 0) {
        std::cerr << "usage: prune_groups REPEATS MODEL.pt SHAPE [MODEL.pt SHAPE ...]\n";
        return 2;
    }
    const int repeats = std::max(1, std::atoi(argv[1]));
    for (int i = 2; i + 1 < argc; i += 2) {
        std::vector<int64_t> shape;
        std::stringstream text(argv[i + 1]);
        for (std::string size; std::getline(text, size, ',');) shape.push_back(std::stoll(size));
        const auto model = coppice::Model::load(argv[i]);
        coppice::Context context;
        context.example = {torch::randn(shape)};
        std::vector<double> facts_s, groups_s, scores_s, cut_s;
        size_t count = 0;
        coppice::prune::Target target;
        target.round_to = 1;
        for (int repeat = 0; repeat < repeats; ++repeat) {
            const double start = now_s();
            const auto facts = coppice::Facts::observe(model, context.example);
            const double observed = now_s();
            const auto groups = coppice::prune::find_groups(model, facts);
            const double found = now_s();
            const auto scores = coppice::prune::magnitude()->scores(model, groups, context);
            const auto removal =
                coppice::prune::uniform()->allocate(groups, scores, coppice::prune::CostModel(groups), target);
            const double decided = now_s();
            const auto smaller = coppice::prune::cut(model, facts, groups, removal);
            const double done = now_s();
            facts_s.push_back(observed - start);
            groups_s.push_back(found - observed);
            scores_s.push_back(decided - found);
            cut_s.push_back(done - decided);
            count = groups.all().size();
        }
        std::cout << Json{{"model", argv[i]},
                          {"groups", count},
                          {"facts_s", median(facts_s)},
                          {"groups_s", median(groups_s)},
                          {"scores_s", median(scores_s)},
                          {"cut_s", median(cut_s)}}
                         .dump()
                  << std::endl;
    }
    return 0;
} catch (const std::exception& error) {
    std::cerr << coppice::message_of(error) << "\n";
    return 1;
}
