// Every file of the collection and every real model: the canonical model computes what the original computes.
#include "support/support.h"
#include "zoo/models.h"

namespace coppice::testing {
namespace {

/// Sum of every floating output weighted by a smooth pattern: a scalar that depends on all of them.
at::Tensor scalar_of(const c10::IValue& output) {
    at::Tensor sum = at::zeros({});
    for (const auto& tensor : all_tensors(output))
        if (tensor.is_floating_point())
            sum = sum +
                  (tensor * at::arange(tensor.numel(), at::kDouble).cos().to(at::kFloat).reshape(tensor.sizes())).sum();
    return sum;
}

c10::IValue run(torch::jit::Module& module, const Inputs& inputs) {
    torch::manual_seed(7);  // the same dropout masks in both
    return module.forward(inputs);
}

/// What a run in earnest shows, against Facts, which avoid one where they can.
void expect_facts_of_a_run(const Model& model, const Inputs& inputs) {
    const auto facts = Facts::observe(model, inputs);
    size_t tensors = 0;
    NodeHooks hooks;
    hooks.after = [&](const torch::jit::Node* node, std::vector<c10::IValue>& outputs) {
        EXPECT_GT(facts.runs(node), 0) << *node;
        if (facts.runs(node) != 1) return;  // in a loop: facts are those of the last turn
        for (size_t i = 0; i < outputs.size(); ++i) {
            const auto* fact = facts.find(node->outputs()[i]);
            ASSERT_NE(fact, nullptr) << *node;
            const bool is_tensor = outputs[i].isTensor() && outputs[i].toTensor().defined();
            ASSERT_EQ(fact->is_tensor, is_tensor) << *node;
            if (is_tensor) {
                EXPECT_EQ(fact->shape, outputs[i].toTensor().sizes().vec()) << *node;
                EXPECT_EQ(fact->dtype, outputs[i].toTensor().scalar_type()) << *node;
                ++tensors;
            } else if (outputs[i].isInt() || outputs[i].isBool() || outputs[i].isIntList()) {
                ASSERT_TRUE(fact->constant) << *node;
                EXPECT_EQ(*fact->constant, outputs[i]) << *node;
            }
        }
    };
    run_nodes(model, inputs, hooks);
    EXPECT_GT(tensors, 3u);
}

class CanonicalModel : public ::testing::TestWithParam<ZooModel> {};

TEST_P(CanonicalModel, ComputesWhatTheOriginalComputes) {
    const auto& spec = GetParam();
    const auto path = zoo_path(spec);
    if (!std::filesystem::exists(path)) GTEST_SKIP() << "needs the development data: " << spec.file;
    if (const auto reason = expected_refusal(spec.file); !reason.empty()) {
        EXPECT_ERROR(Model::load(path), UnsupportedModel, reason);
        return;
    }
    // Without the profiling executor both run the same operators; with it, the first runs are slow and may fuse
    // differently.
    torch::jit::setGraphExecutorOptimize(false);
    auto original = torch::jit::load(path);
    original.eval();
    auto model = Model::load(path);

    const auto inputs = zoo_inputs(spec);
    {
        torch::NoGradGuard no_grad;
        const auto expected = all_tensors(run(original, inputs));
        const auto walked = all_tensors(run_nodes(model, inputs));
        expect_facts_of_a_run(model, inputs);
        const auto executed = all_tensors(model.forward(inputs));
        TemporaryFolder folder;
        model.save(folder / "model.pt");
        auto reloaded_module = torch::jit::load((folder / "model.pt").string());
        const auto reloaded = all_tensors(reloaded_module.forward(inputs));
        ASSERT_EQ(expected.size(), executed.size());
        ASSERT_EQ(expected.size(), walked.size());
        ASSERT_EQ(expected.size(), reloaded.size());
        for (size_t i = 0; i < expected.size(); ++i) {
            // Bit for bit: the same operators in the same order on the same tensors.
            EXPECT_TRUE(at::equal(expected[i], executed[i])) << max_difference(expected[i], executed[i]);
            EXPECT_TRUE(at::equal(expected[i], walked[i])) << max_difference(expected[i], walked[i]);
            EXPECT_TRUE(at::equal(expected[i], reloaded[i])) << max_difference(expected[i], reloaded[i]);
            EXPECT_TRUE(expected[i].isfinite().all().item<bool>());
        }
    }

    // Training mode: gradients of every parameter, and the running statistics it leaves.
    original.train();
    model.train();
    // A batch of one has no variance at 1 x 1 pixels; a traced model may have its batch size baked in.
    const auto batch = zoo_inputs(spec, spec.file.find(".script.") != std::string::npos ? 2 : 1);
    at::Tensor expected_loss, loss;
    try {
        expected_loss = scalar_of(run(original, batch));
    } catch (const c10::Error&) {
        GTEST_LOG_(INFO) << spec.file << ": the original does not train on this input; gradients not compared";
        return;
    }
    if (!expected_loss.requires_grad()) return;
    try {
        expected_loss.backward();
    } catch (const std::exception& error) {  // a trace of the inference-only fast path of attention, say
        ASSERT_NE(std::string(error.what()).find("is not implemented"), std::string::npos) << error.what();
        GTEST_LOG_(INFO) << spec.file << ": the original has no gradient; not compared";
        return;
    }
    torch::manual_seed(7);
    loss = scalar_of(model.forward(batch));
    loss.backward();
    std::map<std::string, at::Tensor> gradients;
    for (const auto& [name, tensor, role] : named_tensors(model))
        if (role == Role::kParameter) gradients[name] = tensor.grad();
    size_t compared = 0;
    for (const auto& parameter : original.named_parameters()) {
        const auto found = gradients.find(parameter.name);
        if (found == gradients.end()) continue;  // an alias of a shared parameter
        const auto& expected = parameter.value.grad();
        // A recurrent layer of a loaded archive trains copies in its weight list and leaves the parameters without
        // gradient; the canonical model has made them one.
        if (!expected.defined()) continue;
        ASSERT_TRUE(found->second.defined()) << parameter.name;
        ++compared;
        // Gradients that meet at one tensor are added in the order in which the engine finishes: float rounding.
        const double scale = std::max(1e-6, expected.abs().max().item<double>());
        EXPECT_LE(max_difference(expected, found->second) / scale, 1e-4) << parameter.name;
    }
    EXPECT_GT(compared, 0u);
    std::map<std::string, at::Tensor> buffers;
    for (const auto& [name, tensor, role] : named_tensors(model))
        if (role == Role::kBuffer) buffers[name] = tensor;
    for (const auto& buffer : original.named_buffers()) {
        if (buffer.name.find("running_") == std::string::npos || !buffers.count(buffer.name)) continue;
        EXPECT_LE(max_difference(buffer.value, buffers[buffer.name]), 1e-5) << buffer.name;
    }
}

std::string name_of(const ::testing::TestParamInfo<ZooModel>& info) {
    return test_name(info.param.file);
}
INSTANTIATE_TEST_SUITE_P(Zoo, CanonicalModel, ::testing::ValuesIn(zoo_models()), name_of);
INSTANTIATE_TEST_SUITE_P(Real, CanonicalModel, ::testing::ValuesIn(real_models()), name_of);

TEST(Expectations, RefuseAtMostFivePercentOfTheFiles) {
    size_t refused = 0;
    const auto total = zoo_models().size() + real_models().size();
    for (const auto& model : zoo_models()) refused += !expected_refusal(model.file).empty();
    for (const auto& model : real_models()) refused += !expected_refusal(model.file).empty();
    EXPECT_LE(refused * 20, total) << refused << " of " << total;
}

}  // namespace
}  // namespace coppice::testing
