// Links LibTorch and nothing of Coppice: what a service that already runs TorchScript does.
//
//   stock_libtorch MODEL                       prints shape and sum of the output for an image of ones
//   stock_libtorch MODEL DATA ENGINE [...]     runs each model on the inputs in DATA, a pickled tuple (inputs, output),
//                                              and compares with that output bit for bit
#include <ATen/Context.h>
#include <c10/core/QEngine.h>
#include <torch/script.h>
#include <torch/serialize.h>

#include <fstream>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <string>

namespace {

/// @param name  as LibTorch prints it: X86, ONEDNN, FBGEMM
void use_engine(const std::string& name) {
    for (const auto engine : at::globalContext().supportedQEngines())
        if (c10::toString(engine) == name) return at::globalContext().setQEngine(engine);
    throw std::runtime_error("LibTorch has no engine " + name + " here");
}

bool same(const std::string& model, const std::string& data, const std::string& engine) {
    use_engine(engine);
    std::ifstream file(data, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    const auto expected = torch::pickle_load(bytes).toTuple()->elements();
    auto module = torch::jit::load(model);
    auto output = module.forward(expected[0].toList().vec());
    if (output.isTuple()) output = output.toTuple()->elements()[0];
    const bool equal = at::equal(output.toTensor(), expected[1].toTensor());
    if (!equal)
        std::cout << model << ": another output, by up to "
                  << (output.toTensor() - expected[1].toTensor()).abs().max().item<double>() << "\n";
    return equal;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 2 && (argc - 1) % 3 != 0) return 2;
    c10::InferenceMode inference;
    if (argc == 2) {
        auto module = torch::jit::load(argv[1]);
        const auto output = module.forward({torch::ones({1, 3, 8, 8})}).toTensor();
        std::cout << output.sizes() << " " << std::setprecision(9) << output.sum().item<float>() << "\n";
        return 0;
    }
    int different = 0;
    for (int i = 1; i + 2 < argc; i += 3) {
        try {
            different += !same(argv[i], argv[i + 1], argv[i + 2]);
        } catch (const std::exception& error) {
            std::cout << argv[i] << ": " << error.what() << "\n";
            ++different;
        }
    }
    std::cout << (argc - 1) / 3 - different << " models give the same output\n";
    return different > 0;
}
