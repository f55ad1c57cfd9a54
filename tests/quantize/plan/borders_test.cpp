// The borders are a minimum cut; here every choice is tried.
#include "plan/units.h"

#include <limits>
#include <random>

#include "support/support.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

constexpr double kCall = 2000, kQuantize = 0.04, kDequantize = 0.035;

/// Modelled time of one choice, from its definition: units, and one conversion per tensor that both sides touch.
double price(const std::vector<Unit>& units, const std::vector<bool>& int8, const Facts& facts) {
    double sum = 0;
    std::map<const torch::jit::Value*, size_t> maker;
    for (size_t i = 0; i < units.size(); ++i) {
        if (units[i].kind != UnitKind::kConv) sum += int8[i] ? units[i].int8_cost : units[i].float_cost;
        for (const auto* value : units[i].outputs) maker[value] = i;
    }
    std::map<const torch::jit::Value*, std::pair<bool, bool>> readers;  // by float, by int8
    for (size_t i = 0; i < units.size(); ++i)
        for (const auto* value : units[i].inputs) (int8[i] ? readers[value].second : readers[value].first) = true;
    for (const auto& [value, unit] : maker)
        for (const auto& use : value->uses())
            if (use.user->kind() == torch::jit::prim::Return || use.user->kind() == torch::jit::prim::TupleConstruct ||
                use.user->kind() == torch::jit::aten::tanh)
                readers[value].first = true;
    for (const auto& [value, by] : readers) {
        double count = 1;
        for (const auto size : facts.shape(value)) count *= static_cast<double>(size);
        const bool made_int8 = maker.count(value) && int8[maker.at(value)];
        if (made_int8 && by.first) sum += kCall + kDequantize * count;
        if (!made_int8 && by.second) sum += kCall + kQuantize * count;
    }
    return sum;
}

TEST(Borders, HaveTheLeastTimeOfAllChoices) {
    const auto model = build_model({{"a.weight", sine({4, 3, 3, 3})}, {"b.weight", sine({4, 4, 1, 1})}},
                                   "def forward(self, x):\n"
                                   "    y = torch.conv2d(x, self.a.weight, None, [1, 1], [1, 1])\n"
                                   "    p = torch.max_pool2d(y, [2, 2], [2, 2])\n"
                                   "    s = torch.tanh(p)\n"
                                   "    m = s * p\n"
                                   "    c = torch.cat([m, p], 1)\n"
                                   "    t = torch.transpose(c, 2, 3)\n"
                                   "    r = torch.relu(t + c)\n"
                                   "    z = torch.conv2d(m, self.b.weight)\n"
                                   "    return torch.mean(r, [2, 3]), z + m\n");
    const auto facts = Facts::observe(model, {sine({1, 3, 8, 8})});
    std::mt19937 random(3);
    std::uniform_real_distribution<double> cost(0, 6000);
    size_t seen_int8 = 0, seen_float = 0;
    for (int trial = 0; trial < 20; ++trial) {
        auto units = find_units(model, facts);
        ASSERT_EQ(units.size(), 9u);
        for (auto& unit : units) {
            unit.int8_cost = cost(random);
            unit.float_cost = cost(random);
        }
        choose_borders(units, facts, false);
        std::vector<bool> chosen;
        for (const auto& unit : units) chosen.push_back(unit.int8);
        double least = std::numeric_limits<double>::infinity();
        for (unsigned mask = 0; mask < 1u << units.size(); ++mask) {
            std::vector<bool> int8;
            bool allowed = true;
            for (size_t i = 0; i < units.size(); ++i) {
                int8.push_back((mask >> i & 1) != 0);
                allowed &= int8[i] || units[i].kind != UnitKind::kConv;
            }
            if (allowed) least = std::min(least, price(units, int8, facts));
        }
        EXPECT_NEAR(price(units, chosen, facts), least, 1e-3) << "trial " << trial;  // ns; capacities are doubles
        for (const auto& unit : units)
            if (unit.kind != UnitKind::kConv) ++(unit.int8 ? seen_int8 : seen_float);
    }
    EXPECT_GT(seen_int8, 10u);  // the trials reach both answers
    EXPECT_GT(seen_float, 10u);
}

TEST(Borders, LeaveALonelyCheapOperatorInFloat) {
    const auto model = build_model({{"a.weight", sine({4, 3, 3, 3})}},
                                   "def forward(self, x):\n"
                                   "    y = torch.tanh(torch.relu(torch.sigmoid(x)))\n"
                                   "    return torch.softmax(torch.conv2d(y, self.a.weight), 1)\n");
    const auto facts = Facts::observe(model, {sine({1, 3, 8, 8})});
    auto units = find_units(model, facts);
    choose_borders(units, facts, true);
    for (const auto& unit : units) EXPECT_EQ(unit.int8, unit.kind == UnitKind::kConv);
}

}  // namespace
}  // namespace coppice::quantize
