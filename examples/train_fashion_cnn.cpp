// Trains a small convolutional network on Fashion-MNIST with Coppice's trainer and saves it as TorchScript.
//
//   train_fashion_cnn OUT.pt [EPOCHS] [FOLDER]
//
// FOLDER holds the IDX files, gzip or plain; by default that of Debian's package dataset-fashion-mnist.
#include <coppice/data.h>
#include <coppice/model.h>
#include <coppice/train.h>

#include <cmath>
#include <cstdio>
#include <iostream>

namespace {

/// Kaiming initialisation (arXiv 1502.01852) for the weights of a convolution or linear layer.
at::Tensor kaiming(std::vector<int64_t> shape) {
    const auto fan_in = static_cast<double>(c10::multiply_integers(shape) / shape[0]);
    return torch::randn(shape) * std::sqrt(2.0 / fan_in);
}

void add_layer(torch::jit::Module& parent, const std::string& name, std::vector<int64_t> shape) {
    torch::jit::Module layer(c10::QualifiedName("__torch__.Layer_" + name), parent._ivalue()->compilation_unit(), true);
    layer.register_parameter("weight", kaiming(shape), /*is_buffer=*/false);
    layer.register_parameter("bias", torch::zeros({shape[0]}), false);
    parent.register_module(name, layer);
}

void add_norm(torch::jit::Module& parent, const std::string& name, int64_t channels) {
    torch::jit::Module norm(c10::QualifiedName("__torch__.Norm_" + name), parent._ivalue()->compilation_unit(), true);
    norm.register_parameter("weight", torch::ones({channels}), false);
    norm.register_parameter("bias", torch::zeros({channels}), false);
    norm.register_parameter("running_mean", torch::zeros({channels}), true);
    norm.register_parameter("running_var", torch::ones({channels}), true);
    norm.register_attribute("training", c10::BoolType::get(), true);
    parent.register_module(name, norm);
}

torch::jit::Module network() {
    auto unit = std::make_shared<torch::jit::CompilationUnit>();
    torch::jit::Module net(c10::QualifiedName("__torch__.FashionNet"), unit, true);
    net.register_attribute("training", c10::BoolType::get(), true);
    add_layer(net, "conv1", {32, 1, 3, 3});
    add_norm(net, "bn1", 32);
    add_layer(net, "conv2", {64, 32, 3, 3});
    add_norm(net, "bn2", 64);
    add_layer(net, "conv3", {64, 64, 3, 3});
    add_norm(net, "bn3", 64);
    add_layer(net, "fc1", {128, 64 * 3 * 3});
    add_layer(net, "fc2", {10, 128});
    net.define(R"(
def forward(self, x):
    x = torch.conv2d(x, self.conv1.weight, self.conv1.bias, [1, 1], [1, 1])
    x = torch.batch_norm(x, self.bn1.weight, self.bn1.bias, self.bn1.running_mean, self.bn1.running_var, self.bn1.training, 0.1, 1e-5, True)
    x = torch.max_pool2d(torch.relu(x), [2, 2])
    x = torch.conv2d(x, self.conv2.weight, self.conv2.bias, [1, 1], [1, 1])
    x = torch.batch_norm(x, self.bn2.weight, self.bn2.bias, self.bn2.running_mean, self.bn2.running_var, self.bn2.training, 0.1, 1e-5, True)
    x = torch.max_pool2d(torch.relu(x), [2, 2])
    x = torch.conv2d(x, self.conv3.weight, self.conv3.bias, [1, 1], [1, 1])
    x = torch.batch_norm(x, self.bn3.weight, self.bn3.bias, self.bn3.running_mean, self.bn3.running_var, self.bn3.training, 0.1, 1e-5, True)
    x = torch.max_pool2d(torch.relu(x), [2, 2])
    x = torch.flatten(x, 1)
    x = torch.relu(torch.linear(x, self.fc1.weight, self.fc1.bias))
    return torch.linear(x, self.fc2.weight, self.fc2.bias)
)");
    return net;
}

class PrintingLog final : public coppice::Log {
    void write(const std::string& level, const std::string& message) override {
        std::cout << (level == "warning" ? "warning: " : "") << message << std::endl;
    }
};

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) {
        std::cerr << "usage: " << argv[0] << " OUT.pt [EPOCHS] [FOLDER]\n";
        return 2;
    }
    try {
        torch::manual_seed(0);
        const std::string folder = argc > 3 ? argv[3] : "/usr/share/datasets/fashion-mnist";
        const auto data = coppice::open_data(
            coppice::Setting::map({{"format", coppice::Setting::scalar("idx")},
                                   {"train", coppice::Setting::scalar(folder + "/train-images-idx3-ubyte.gz")}}),
            ".");
        auto model = coppice::Model::from_module(network(), "fashion_cnn");
        coppice::TrainOptions options;
        options.epochs = argc > 2 ? std::stoll(argv[2]) : 2;
        options.batch_size = 128;
        options.optimizer = "adamw";
        options.lr = 0.003;
        options.weight_decay = 0.01;
        options.autocast = "auto";
        PrintingLog log;
        coppice::Trainer trainer(options);
        const auto module = coppice::trainable(model);
        trainer.fit(*module, *data.train, *coppice::cross_entropy(), {}, {}, {}, log);
        model.eval();
        model.save(argv[1]);
        std::cout << "saved " << argv[1] << std::endl;
        return 0;
    } catch (const std::exception& error) {
        std::cerr << "error: " << coppice::message_of(error) << "\n";
        return 1;
    }
}
