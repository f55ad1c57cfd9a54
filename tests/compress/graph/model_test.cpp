#include <caffe2/serialize/inline_container.h>

#include <fstream>

#include "support/support.h"

namespace coppice::testing {
namespace {

void write(const std::filesystem::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
}

TEST(Model, SaysWhatAFileIsInsteadOfTorchScript) {
    TemporaryFolder folder;
    EXPECT_ERROR(Model::load(folder / "absent.pt"), IoError, "no such file");
    EXPECT_ERROR(Model::load(folder.path()), IoError, "is a folder");
    write(folder / "empty.pt", "");
    EXPECT_ERROR(Model::load(folder / "empty.pt"), IoError, "the file is empty");
    write(folder / "text.pt", "hello, world");
    EXPECT_ERROR(Model::load(folder / "text.pt"), IoError, "not a TorchScript archive");
    write(folder / "old.pt", "\x80\x02}q\x01.");
    EXPECT_ERROR(Model::load(folder / "old.pt"), IoError, "pickle");

    const auto pickled = torch::pickle_save(c10::IValue(sine({3})));
    write(folder / "state_dict.pt", std::string(pickled.begin(), pickled.end()));
    EXPECT_ERROR(Model::load(folder / "state_dict.pt"), IoError, "state_dict");

    residual_model().save(folder / "good.pt");
    std::ifstream file(folder / "good.pt", std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    write(folder / "half.pt", bytes.substr(0, bytes.size() / 2));
    EXPECT_ERROR(Model::load(folder / "half.pt"), IoError, "truncated");

    {
        caffe2::serialize::PyTorchStreamWriter exported((folder / "exported.pt2").string());
        const std::string text = "{}";
        exported.writeRecord("serialized_exported_program.json", text.data(), text.size());
        exported.writeEndOfFile();
    }
    EXPECT_ERROR(Model::load(folder / "exported.pt2"), IoError, "exported program");
}

TEST(Model, RefusesAnArchiveOfANewerLibTorch) {
    TemporaryFolder folder;
    {
        caffe2::serialize::PyTorchStreamWriter writer((folder / "future.pt").string());
        writer.setMinVersion(999);
        const std::string text = "x";
        writer.writeRecord("constants.pkl", text.data(), text.size());
        writer.writeEndOfFile();
    }
    EXPECT_ERROR(Model::load(folder / "future.pt"), IoError, "newer LibTorch");
}

TEST(Model, SavesSmallerThanLibTorchAndStockLibTorchLoadsIt) {
    auto module = build_module({{"fc.weight", at::zeros({500, 500})}},
                               "def forward(self, x):\n    return torch.linear(x, self.fc.weight)\n");
    TemporaryFolder folder;
    module.save((folder / "plain.pt").string());
    Model::from_module(module).save(folder / "packed.pt");
    EXPECT_LT(std::filesystem::file_size(folder / "packed.pt") * 20,
              std::filesystem::file_size(folder / "plain.pt"));  // zeros deflate
    auto loaded = torch::jit::load((folder / "packed.pt").string());
    EXPECT_TRUE(at::equal(loaded.forward({at::ones({1, 500})}).toTensor(), at::zeros({1, 500})));
    std::ifstream file(folder / "packed.pt", std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    EXPECT_EQ(bytes.find(".debug_pkl"), std::string::npos);
}

TEST(Model, ACloneSharesNothingWithItsOriginal) {
    const auto model = residual_model();
    auto copy = model.clone();
    const auto x = sine({2, 3, 8, 8});
    const auto before = first_tensor(model.forward({x})).clone();
    EXPECT_TRUE(at::equal(before, first_tensor(copy.forward({x}))));
    set_tensor(copy, "conv1.weight", at::zeros({8, 3, 3, 3}));
    for (auto* node : all_nodes(*copy.graph()))
        if (as_linear(node)) node->output()->replaceAllUsesWith(node->input(0));
    copy.refresh();
    EXPECT_TRUE(at::equal(before, first_tensor(model.forward({x}))));
    EXPECT_GT(max_difference(before, first_tensor(copy.forward({x}))), 0);
}

TEST(Model, KeepsOutputsOfEveryForm) {
    const std::vector<std::pair<std::string, size_t>> sources = {
        {"def forward(self, x):\n    return x + self.w, x * self.w\n", 2},
        {"def forward(self, x):\n    return [x + self.w, x * self.w, x]\n", 3},
        {"def forward(self, x):\n    return {'sum': x + self.w, 'product': x * self.w}\n", 2}};
    for (const auto& [source, count] : sources) {
        auto module = build_module({{"w", sine({3})}}, source);
        const auto model = Model::from_module(module);
        const auto x = sine({3}, 2);
        const auto expected = all_tensors(module.forward({x})), got = all_tensors(model.forward({x}));
        ASSERT_EQ(got.size(), count) << source;
        for (size_t i = 0; i < count; ++i) EXPECT_TRUE(at::equal(expected[i], got[i])) << source;
    }
}

TEST(Model, WeightsThatAreConstantsBecomeParameters) {
    auto module = build_module({{"conv.weight", sine({4, 3, 3, 3})}, {"conv.bias", sine({4})}},
                               "def forward(self, x):\n    return torch.conv2d(x, self.conv.weight, self.conv.bias)\n");
    module.eval();
    const auto frozen = torch::jit::freeze(module);
    ASSERT_TRUE(frozen.named_parameters().size() == 0);
    const auto model = Model::from_module(frozen);
    EXPECT_EQ(named_tensors(model).size(), 2u);
    const auto x = sine({1, 3, 6, 6});
    EXPECT_TRUE(at::equal(first_tensor(model.forward({x})), module.forward({x}).toTensor()));
}

TEST(Model, TracedConvolutionsWithAPaddingByNameGetTheirUsualName) {
    const auto module = build_module({{"conv.weight", sine({4, 3, 3, 3})}, {"line.weight", sine({2, 4, 4})}},
                                     R"(
def forward(self, x):
    x = torch._convolution_mode(x, self.conv.weight, None, [1, 1], "same", [2, 2], 1)
    return torch._convolution_mode(x.flatten(2), self.line.weight, None, [3], "valid", [1], 1)
)");
    const auto model = Model::from_module(module.clone(), "in memory");
    std::vector<std::string> kinds;
    for (auto* node : all_nodes(*model.graph()))
        if (as_conv(node)) kinds.push_back(node->kind().toQualString());
    EXPECT_EQ(kinds, (std::vector<std::string>{"aten::conv2d", "aten::conv1d"}));
    auto original = module;
    const auto x = sine({2, 3, 6, 5});
    EXPECT_TRUE(at::equal(first_tensor(model.forward({x})), original.forward({x}).toTensor()));
    // By hand: 4 * 3 * 9 products at 30 places, then 2 * 4 * 4 at 9, for two images.
    EXPECT_EQ(cost(model, {x}).macs, 2 * (108 * 30 + 32 * 9));
}

TEST(Model, FoldsFlagsButKeepsTheTrainingSwitch) {
    auto flagged = build_module({{"drop.w", sine({1})}}, "def helper(self, x):\n    return x\n");
    flagged.register_attribute("double", c10::BoolType::get(), true);
    flagged.define(
        "def forward(self, x):\n    if self.double:\n        x = x * 2\n    return torch.dropout(x, 0.5, "
        "self.drop.training)\n");
    auto model = Model::from_module(flagged);
    for (const auto* node : all_nodes(*model.graph())) EXPECT_NE(node->kind(), torch::jit::prim::If);
    const auto x = at::ones({1000});
    model.eval();
    EXPECT_TRUE(at::equal(first_tensor(model.forward({x})), x * 2));
    model.train();
    const auto zeros = (first_tensor(model.forward({x})) == 0).sum().item<int64_t>();
    EXPECT_GT(zeros, 400);  // 500 expected, standard deviation 16
    EXPECT_LT(zeros, 600);
}

TEST(Model, BranchesOnWhetherAValueIsItselfGoAndUnreadEntriesOfTuplesWithThem) {
    const auto model = build_model({{"a.weight", sine({4, 3}, 0.5)}}, R"(
def two(self, query, key) -> Tuple[Tensor, Tensor]:
    if query.dim() == 3:
        if query is key:
            query = key = query.transpose(1, 0)
        else:
            query, key = torch.cos(query), key.transpose(1, 0)
    if query is not key:
        return torch.sin(query), key
    if query.dim() == 3:
        return torch.linear(query, self.a.weight), torch.exp(key)
    else:
        return torch.linear(query, self.a.weight).relu(), torch.tanh(key)

def forward(self, x):
    y, _ = self.two(x, x)
    return y
)");
    std::set<std::string> left;
    for (const auto* node : all_nodes(*model.graph())) left.insert(node->kind().toQualString());
    for (const char* gone : {"aten::__is__", "aten::__isnot__", "aten::sin", "aten::cos", "aten::exp", "aten::tanh"})
        EXPECT_FALSE(left.count(gone)) << gone;
    const auto x = sine({2, 5, 3});
    const auto y = at::linear(x, get_attribute(model, "a.weight").toTensor());
    EXPECT_EQ(max_difference(first_tensor(model.forward({x})), y.transpose(1, 0)), 0);
    EXPECT_EQ(max_difference(first_tensor(model.forward({x[0]})), y[0].relu()), 0);
}

TEST(Model, AFailingOperatorIsAnErrorWhenTheOriginalIsGone) {
    // LibTorch reports the calls that led to the operator: those functions must still be there.
    auto model = [] {
        auto module = build_module({{"weight", sine({4, 3})}}, R"(
def helper(self, x):
    return torch.linear(x, self.weight)
def forward(self, x):
    return self.helper(x)
)");
        return Model::from_module(module, "gone").clone();
    }();
    model.refresh();
    EXPECT_ANY_THROW(model.forward({sine({2, 5})}));
    EXPECT_EQ(first_tensor(model.forward({sine({2, 3})})).size(1), 4);
}

}  // namespace
}  // namespace coppice::testing
