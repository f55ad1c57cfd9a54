// A program of a user: prunes half of the channels of a model through the library and saves it.
#include <coppice/prune.h>

#include <iomanip>
#include <iostream>

int main(int argc, char** argv) {
    if (argc != 2) return 2;
    auto unit = std::make_shared<torch::jit::CompilationUnit>();
    torch::jit::Module net(c10::QualifiedName("__torch__.Net"), unit, true);
    const auto weights = [](std::vector<int64_t> shape) {
        return (torch::arange(c10::multiply_integers(shape), torch::kDouble).sin() * 0.3)
            .to(torch::kFloat)
            .reshape(shape);
    };
    net.register_parameter("first", weights({16, 3, 3, 3}), false);
    net.register_parameter("second", weights({10, 16, 3, 3}), false);
    net.define(
        "def forward(self, x):\n    return torch.conv2d(torch.relu(torch.conv2d(x, self.first)), self.second)\n");
    const auto model = coppice::Model::from_module(net, "net");
    coppice::Context context;
    context.example = {torch::ones({1, 3, 8, 8})};
    coppice::Options options("prune.channel", {{"criterion", "magnitude"}, {"ratio", "0.5"}, {"round_to", "1"}});
    const auto& row = coppice::find_entry(coppice::prune::stages(), "stage", "prune.channel", "consumer");
    const auto pruned = row.make(options)->apply(model, context);
    pruned.save(argv[1]);
    torch::NoGradGuard no_grad;
    const auto output = coppice::first_tensor(pruned.forward(context.example));
    std::cout << output.sizes() << " " << std::setprecision(9) << output.sum().item<float>() << "\n";
    // 16 channels of 27 weights and 144 weights for each channel in 10 filters: half of them stay.
    return coppice::cost(pruned, context.example).parameters == (16 * 27 + 10 * 16 * 9) / 2 ? 0 : 1;
}
