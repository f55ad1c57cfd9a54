// Links LibTorch and nothing of Coppice: what a service that already runs TorchScript does.
#include <torch/script.h>

#include <iomanip>
#include <iostream>

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    c10::InferenceMode inference;
    auto module = torch::jit::load(argv[1]);
    const auto output = module.forward({torch::ones({1, 3, 8, 8})}).toTensor();
    std::cout << output.sizes() << " " << std::setprecision(9) << output.sum().item<float>() << "\n";
}
