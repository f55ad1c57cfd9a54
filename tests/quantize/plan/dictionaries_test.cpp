// Dictionaries of tensors: gone where keys are known, and never with another result.
#include <coppice/quantize.h>

#include "plan/plan.h"
#include "support/support.h"

namespace coppice::quantize {
namespace {

using namespace coppice::testing;

const std::vector<std::pair<std::string, at::Tensor>> kTensors = {{"a.weight", sine({4, 3, 3, 3}, 0.3)},
                                                                  {"b.weight", sine({4, 4, 1, 1}, 0.6)},
                                                                  {"c.weight", sine({5, 4, 1, 1}, 0.4)}};

Model model_of(const std::string& body) {
    return build_model(kTensors, "def forward(self, x):\n    d: Dict[str, Tensor] = {}\n" + body);
}

int count(const Model& model, const std::string& op) {
    int found = 0;
    for (const auto* node : all_nodes(*model.graph())) found += node->kind().toQualString() == op;
    return found;
}

/// Both give the same tensors in the same order, bit for bit.
void expect_equal(const Model& before, const Model& after, const Inputs& inputs) {
    const auto copy = [&] { return Inputs{inputs[0].toTensor().clone()}; };  // forward may write to it
    const auto a = all_tensors(before.forward(copy())), b = all_tensors(after.forward(copy()));
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) EXPECT_EQ(max_difference(a[i], b[i]), 0) << "output " << i;
}

void expect_all_int8(const Model& model, const Inputs& inputs, int layers) {
    int int8 = 0;
    const auto plan = plan_static(model, inputs, std::vector<Inputs>{inputs});  // owns the layers
    for (const auto& layer : plan.layers()) {
        if (layer.parameters == 0) continue;
        EXPECT_TRUE(layer.int8) << layer.layer << ": " << layer.reason;
        ++int8;
    }
    EXPECT_EQ(int8, layers);
}

TEST(Dictionaries, WhatAnInPlaceOperatorLeftInOneDoesNotKeepLayersInFloat) {
    torch::NoGradGuard no_grad;
    const auto model = model_of(
        "    x = torch.relu_(torch.conv2d(x, self.a.weight))\n"
        "    d['low'] = x\n"
        "    x = torch.relu_(torch.conv2d(x, self.b.weight))\n"
        "    if 'high' not in d:\n"
        "        x = x + 1.0\n"
        "    d['high'] = x\n"
        "    return torch.conv2d(d['high'] + d['low'], self.c.weight) * float(len(d))\n");
    const Inputs x{sine({2, 3, 8, 8}, 2)};
    const auto prepared = prepare(model, x, nullptr);
    for (const char* op : {"prim::DictConstruct", "aten::_set_item", "aten::__getitem__", "aten::relu_", "prim::If"})
        EXPECT_EQ(count(prepared, op), 0) << op;
    expect_equal(model, prepared, x);
    expect_all_int8(model, x, 3);
}

TEST(Dictionaries, AChangeInPlaceIsSeenByWhatReadsLater) {
    torch::NoGradGuard no_grad;
    const Inputs x{sine({2, 3, 8, 8}, 2)};
    int converted = 0;
    for (const char* body : {
             // Of what was put in, of what was taken out, and between two readers.
             "    y = torch.conv2d(x, self.a.weight)\n    d['y'] = y\n    y.add_(1.0)\n"
             "    return torch.conv2d(d['y'], self.b.weight)\n",
             "    d['y'] = torch.conv2d(x, self.a.weight)\n    d['y'].mul_(2.0)\n"
             "    return torch.conv2d(d['y'], self.b.weight)\n",
             "    y = torch.conv2d(x, self.a.weight)\n    d['y'] = y\n    early = d['y'] * 1.0\n"
             "    torch.relu_(d['y'])\n    return early, torch.conv2d(y, self.b.weight), d['y']\n",
             // Through a view of it, and under two keys.
             "    d['y'] = torch.conv2d(x, self.a.weight)\n    d['v'] = d['y'].view(-1)\n    d['v'].add_(0.5)\n"
             "    return torch.conv2d(d['y'], self.b.weight)\n",
             "    d['y'] = torch.conv2d(x, self.a.weight)\n    d['z'] = d['y']\n    torch.relu_(d['z'])\n"
             "    d['z'] = x\n    return torch.conv2d(d['y'], self.b.weight), d\n",
             // The model's input itself.
             "    d['x'] = x\n    d['x'].mul_(3.0)\n    return torch.conv2d(x, self.a.weight)\n",
         }) {
        SCOPED_TRACE(body);
        const auto model = model_of(body);
        const auto prepared = prepare(model, x, nullptr);
        EXPECT_EQ(count(prepared, "aten::_set_item"), 0);
        expect_equal(model, prepared, x);
        const auto exact = all_tensors(model.forward({x[0].toTensor().clone()}));
        std::vector<at::Tensor> rounded;
        try {
            const auto int8 = convert(plan_static(model, x, std::vector<Inputs>{{x[0].toTensor().clone()}}));
            rounded = all_tensors(int8.forward({x[0].toTensor().clone()}));
        } catch (const UnsupportedModel& error) {  // seen, and left in float
            EXPECT_THAT(std::string(error.what()), ::testing::HasSubstr("in place"));
            continue;
        }
        ++converted;
        ASSERT_EQ(exact.size(), rounded.size());
        // An operator in place that was missed changes far more than rounding of one or two layers does.
        for (size_t i = 0; i < exact.size(); ++i)
            EXPECT_LT(max_difference(exact[i], rounded[i]), 0.05 * exact[i].abs().max().item<double>()) << i;
    }
    EXPECT_GE(converted, 2);
}

TEST(Dictionaries, ResultsKeepKeysAndTheirOrder) {
    torch::NoGradGuard no_grad;
    const auto model = model_of(
        "    d['z'] = torch.conv2d(x, self.a.weight)\n"
        "    d['a'] = torch.relu(d['z'])\n"
        "    d['z'] = d['z'] + 1.0\n"  // an old key keeps its place
        "    k = d.keys()\n"
        "    s = d.values()\n"
        "    p = d.items()\n"
        "    d['m'] = torch.conv2d(s[0] + p[1][1], self.b.weight)\n"
        "    return d, k[0] + k[1], len(s)\n");
    const Inputs x{sine({1, 3, 6, 6}, 2)};
    const auto prepared = prepare(model, x, nullptr);
    EXPECT_EQ(count(prepared, "aten::_set_item") + count(prepared, "aten::items"), 0);
    expect_equal(model, prepared, x);
    const auto after = prepared.forward(x).toTuple()->elements();
    std::string keys;
    for (const auto& item : after[0].toGenericDict()) keys += item.key().toStringRef();
    EXPECT_EQ(keys, "zam");
    EXPECT_EQ(after[1].toStringRef(), "za");
    EXPECT_EQ(after[2].toInt(), 2);  // values() was before the third
}

TEST(Dictionaries, ThoseWithComputedKeysBranchesOrAliasesStay) {
    torch::NoGradGuard no_grad;
    const Inputs x{sine({2, 3, 6, 6}, 2)};
    for (const char* body : {
             "    d[str(x.size(0))] = torch.conv2d(x, self.a.weight)\n    return torch.relu(d['2'])\n",
             "    d['y'] = torch.conv2d(x, self.a.weight)\n    if bool(x.sum() > -1e9):\n        d['y'] = d['y'] + "
             "1.0\n"
             "    return torch.relu(d['y'])\n",
             "    d['y'] = torch.conv2d(x, self.a.weight)\n    both = [d, d]\n    both[x.size(0) - 2]['y'] = d['y'] + "
             "1.0\n"
             "    return torch.relu(d['y'])\n",
             "    d['y'] = torch.conv2d(x, self.a.weight)\n    d.pop('y')\n    d['y'] = x\n    return d['y'] + 1.0\n",
         }) {
        SCOPED_TRACE(body);
        const auto model = model_of(body);
        const auto prepared = prepare(model, x, nullptr);
        EXPECT_GT(count(prepared, "aten::_set_item"), 0);
        expect_equal(model, prepared, x);
    }
    // A key that is missing is still an error, and when it runs.
    const auto missing = model_of("    d['y'] = torch.conv2d(x, self.a.weight)\n    return d['z']\n");
    auto settled = missing.clone();
    settle_dictionaries(settled);
    EXPECT_ANY_THROW(settled.forward(x));
}

TEST(Dictionaries, WhatAModuleHoldsAndNeverChangesIsConstant) {
    torch::NoGradGuard no_grad;
    const auto build = [](const std::string& body) {
        torch::jit::Module module("dictionary_model");
        c10::Dict<std::string, std::string> names;
        names.insert("layer4", "out");
        module.register_attribute("names", c10::DictType::create(c10::StringType::get(), c10::StringType::get()),
                                  names);
        module.register_parameter("weight", sine({4, 3, 3, 3}, 0.3), false);
        module.register_parameter("head", sine({4, 4, 1, 1}, 0.3), false);
        module.define("def forward(self, x):\n    d: Dict[str, Tensor] = {}\n" + body);
        return Model::from_module(module);
    };
    const std::string walk =
        "    x = torch.relu_(torch.conv2d(x, self.weight))\n"
        "    if 'layer3' in self.names:\n"
        "        d[self.names['layer3']] = x\n"
        "    x = torch.relu_(torch.conv2d(x, self.head))\n"
        "    if 'layer4' in self.names:\n"
        "        d[self.names['layer4']] = x\n"
        "    return d['out'] * 2.0\n";
    const Inputs x{sine({2, 3, 8, 8}, 2)};
    const auto model = build(walk);
    const auto prepared = prepare(model, x, nullptr);
    EXPECT_EQ(count(prepared, "prim::If") + count(prepared, "aten::_set_item") + count(prepared, "aten::relu_"), 0);
    expect_equal(model, prepared, x);
    expect_all_int8(model, x, 2);
    const auto writes = build("    self.names['layer3'] = 'low'\n" + walk);
    auto settled = writes.clone();
    settle_dictionaries(settled);
    EXPECT_GT(count(settled, "aten::__contains__"), 0);
    expect_equal(writes, settled, x);
}

}  // namespace
}  // namespace coppice::quantize
