#include "support/support.h"

#include <torch/csrc/jit/api/compilation_unit.h>

#include <atomic>
#include <cstdlib>
#include <map>

namespace coppice::testing {

std::filesystem::path data_path(const std::string& relative) {
    const char* root = std::getenv("COPPICE_TEST_DATA");
    return root && *root ? std::filesystem::path(root) / relative : std::filesystem::path("absent") / relative;
}

TemporaryFolder::TemporaryFolder() {
    static std::atomic<int> next = 0;
    path_ = std::filesystem::temp_directory_path() /
            ("coppice-test-" + std::to_string(::getpid()) + "-" + std::to_string(next++));
    std::filesystem::create_directories(path_);
}

TemporaryFolder::~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

at::Tensor sine(at::IntArrayRef shape, double scale) {
    return (at::arange(c10::multiply_integers(shape), at::kDouble).sin() * scale).to(at::kFloat).reshape(shape);
}

namespace {

struct Tree {
    std::vector<std::pair<std::string, at::Tensor>> tensors;
    std::vector<Tree> children;
    std::string name = {};
};

void insert(Tree& tree, const std::string& name, const at::Tensor& tensor) {
    const auto dot = name.find('.');
    if (dot == std::string::npos) {
        tree.tensors.emplace_back(name, tensor);
        return;
    }
    const auto head = name.substr(0, dot);
    for (auto& child : tree.children)
        if (child.name == head) return insert(child, name.substr(dot + 1), tensor);
    tree.children.emplace_back();
    tree.children.back().name = head;
    insert(tree.children.back(), name.substr(dot + 1), tensor);
}

torch::jit::Module make(const Tree& tree, const std::string& type_name,
                        const std::shared_ptr<torch::jit::CompilationUnit>& unit) {
    torch::jit::Module module(c10::QualifiedName(type_name), unit, /*shouldMangle=*/true);
    for (const auto& [name, tensor] : tree.tensors) {
        const bool buffer =
            name.rfind("running_", 0) == 0 || name.rfind("buffer_", 0) == 0 || !tensor.is_floating_point();
        module.register_parameter(name, tensor.clone().set_requires_grad(!buffer), buffer);
    }
    module.register_attribute("training", c10::BoolType::get(), false);
    for (const auto& child : tree.children)
        module.register_module(child.name, make(child, type_name + "_" + child.name, unit));
    return module;
}

}  // namespace

torch::jit::Module build_module(const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                                const std::string& source) {
    Tree tree;
    for (const auto& [name, tensor] : tensors) insert(tree, name, tensor);
    auto unit = std::make_shared<torch::jit::CompilationUnit>();
    auto module = make(tree, "__torch__.TestModel", unit);
    module.define(source);
    return module;
}

Model build_model(const std::vector<std::pair<std::string, at::Tensor>>& tensors, const std::string& source) {
    return Model::from_module(build_module(tensors, source), "test model");
}

Model residual_model() {
    std::vector<std::pair<std::string, at::Tensor>> tensors;
    const auto batch_norm = [&](const std::string& name, int64_t channels) {
        tensors.emplace_back(name + ".weight", 1 + sine({channels}, 0.5));
        tensors.emplace_back(name + ".bias", sine({channels}, 0.2));
        tensors.emplace_back(name + ".running_mean", sine({channels}, 0.1));
        tensors.emplace_back(name + ".running_var", 1 + sine({channels}, 0.3));
    };
    tensors.emplace_back("conv1.weight", sine({8, 3, 3, 3}, 0.3));
    batch_norm("bn1", 8);
    tensors.emplace_back("conv2.weight", sine({16, 8, 3, 3}, 0.2));
    batch_norm("bn2", 16);
    tensors.emplace_back("conv3.weight", sine({16, 16, 3, 3}, 0.15));
    batch_norm("bn3", 16);
    tensors.emplace_back("shortcut.weight", sine({16, 8, 1, 1}, 0.4));
    batch_norm("bn4", 16);
    tensors.emplace_back("fc.weight", sine({10, 16}, 0.5));
    tensors.emplace_back("fc.bias", sine({10}, 0.1));
    return build_model(tensors, R"(
def forward(self, x):
    x = torch.conv2d(x, self.conv1.weight, None, [1, 1], [1, 1])
    x = torch.relu(torch.batch_norm(x, self.bn1.weight, self.bn1.bias, self.bn1.running_mean, self.bn1.running_var, self.training, 0.1, 1e-5, True))
    y = torch.conv2d(x, self.conv2.weight, None, [2, 2], [1, 1])
    y = torch.relu(torch.batch_norm(y, self.bn2.weight, self.bn2.bias, self.bn2.running_mean, self.bn2.running_var, self.training, 0.1, 1e-5, True))
    y = torch.conv2d(y, self.conv3.weight, None, [1, 1], [1, 1])
    y = torch.batch_norm(y, self.bn3.weight, self.bn3.bias, self.bn3.running_mean, self.bn3.running_var, self.training, 0.1, 1e-5, True)
    s = torch.conv2d(x, self.shortcut.weight, None, [2, 2])
    s = torch.batch_norm(s, self.bn4.weight, self.bn4.bias, self.bn4.running_mean, self.bn4.running_var, self.training, 0.1, 1e-5, True)
    z = torch.relu(y + s)
    z = torch.flatten(torch.adaptive_avg_pool2d(z, [1, 1]), 1)
    return torch.linear(z, self.fc.weight, self.fc.bias)
)");
}

double max_difference(const at::Tensor& a, const at::Tensor& b) {
    if (a.sizes() != b.sizes()) return std::numeric_limits<double>::infinity();
    if (a.numel() == 0) return 0;
    return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

}  // namespace coppice::testing
