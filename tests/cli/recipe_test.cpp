// Recipes: what is read, and every mistake by its whole text.
#include "support/support.h"

#include <fstream>
#include <set>

#include "modules.h"
#include "recipe.h"

namespace coppice::cli {
namespace {

using testing::TemporaryFolder;

class RecipeTest : public ::testing::Test {
protected:
    Recipe read(const std::string& text, const std::vector<std::string>& overrides = {}) {
        std::ofstream(folder / "recipe.yaml") << text;
        const auto here = std::filesystem::current_path();
        std::filesystem::current_path(folder.path());  // so that messages name the file as a user would
        try {
            auto recipe = read_recipe("recipe.yaml", overrides);
            std::filesystem::current_path(here);
            return recipe;
        } catch (...) {
            std::filesystem::current_path(here);
            throw;
        }
    }

    std::string error(const std::string& text, const std::vector<std::string>& overrides = {}) {
        try {
            read(text, overrides);
        } catch (const InvalidArgument& error) {
            return error.what();
        } catch (const std::exception& error) {
            return std::string("another error: ") + error.what();
        }
        return "no error";
    }

    TemporaryFolder folder;
};

TEST_F(RecipeTest, SpellsOutEveryDefault) {
    const auto recipe = read("model: {path: net.pt, input: [1, 3, 8, 8]}\n");
    EXPECT_EQ(recipe.model, folder / "net.pt");
    EXPECT_EQ(recipe.inputs.at(0).to_string(), "float32:1,3,8,8");
    EXPECT_EQ(recipe.task, Task::kClassification);
    EXPECT_EQ(recipe.metric, "top1");
    EXPECT_EQ(recipe.seed, 0u);
    EXPECT_GE(recipe.threads, 1);
    EXPECT_FALSE(recipe.pipeline.gate.max_drop);
    ASSERT_EQ(recipe.stages.size(), 1u);
    EXPECT_EQ(recipe.stages[0].name, "deploy");
    for (const char* key :
         {"base", "model", "task", "device", "seed", "threads", "stages", "deploy", "gate", "measure", "report"})
        EXPECT_TRUE(recipe.resolved.contains(key)) << key;
    EXPECT_EQ(recipe.resolved["measure"]["profile"], "standard");
}

TEST_F(RecipeTest, TheResolvedRecipeReadsBackAsTheSame) {
    const auto recipe = read(R"(
model: {path: net.pt, input: [1, 3, 8, 8]}
task: {type: regression, metric: mae}
stages:
  - prune.channel: {criterion: {magnitude: {p: 1}}, ratio: 0.3}
  - train.finetune: {epochs: 2, loss: mse}
  - lowrank.svd
gate: {max_drop: 0.5}
measure: {profile: quick, batch: [1, 32]}
)");
    std::ofstream(folder / "again.yaml") << to_yaml(recipe.resolved);
    const auto again = read_recipe(folder / "again.yaml", {});
    EXPECT_EQ(again.resolved.dump(1), recipe.resolved.dump(1));
    EXPECT_EQ(again.model, recipe.model);
    EXPECT_EQ(recipe.resolved["stages"][0]["prune.channel"]["criterion"].dump(),
              R"({"magnitude":{"p":1.0,"reduce":"sum"}})");
}

TEST_F(RecipeTest, PathsAreRelativeToTheRecipe) {
    EXPECT_EQ(read("model: {path: ../a/net.pt, input: [1]}\n").model, (folder.path().parent_path() / "a" / "net.pt"));
    EXPECT_EQ(read("model: {path: '${base}/net.pt', input: [1]}\n").model, folder / "net.pt");
    EXPECT_EQ(read("model: {path: /x/net.pt, input: [1]}\n").model, "/x/net.pt");
    EXPECT_EQ(read("base: sub\nmodel: {path: net.pt, input: [1]}\n").model, folder / "sub" / "net.pt");
    EXPECT_EQ(
        error("model: {path: '${home}/net.pt', input: [1]}\n"),
        "recipe.yaml line 1, column 9: unknown variable \"${home}\". Only ${base}, the recipe's folder, is known.");
}

TEST_F(RecipeTest, DeployComesLastUnlessItIsOffOrThereAlready) {
    const std::string model = "model: {path: net.pt, input: [1]}\n";
    EXPECT_EQ(read(model + "stages: [lowrank.svd]\n").stages.back().name, "deploy");
    EXPECT_EQ(read(model + "stages: [lowrank.svd]\ndeploy: off\n").stages.back().name, "lowrank.svd");
    EXPECT_EQ(read(model + "stages: [lowrank.svd, deploy]\n").stages.size(), 2u);
    EXPECT_EQ(error(model + "stages: [deploy]\ndeploy: on\n"),
              "recipe.yaml line 3, column 1: \"deploy\" is among the stages already. Remove one of them.");
}

TEST_F(RecipeTest, FineTuningRecoversAndKnowsTheLossesOfDistill) {
    const auto recipe = read(
        "model: {path: net.pt, input: [1]}\nstages:\n  - lowrank.svd\n  - train.finetune: {loss: distill.logits}\n");
    EXPECT_FALSE(recipe.stages[0].recovers);
    EXPECT_TRUE(recipe.stages[1].recovers);
    EXPECT_TRUE(recipe.stages[1].stage->needs().teacher);
}

struct Mistake {
    std::string name, recipe, message;
};

class RecipeMistakes : public RecipeTest, public ::testing::WithParamInterface<Mistake> {};

TEST_P(RecipeMistakes, AreNamedWithPlaceAndRemedy) {
    EXPECT_EQ(error(GetParam().recipe), GetParam().message);
}

const std::string kModel = "model: {path: net.pt, input: [1, 3, 8, 8]}\n";

INSTANTIATE_TEST_SUITE_P(
    All, RecipeMistakes,
    ::testing::Values(
        Mistake{"Empty", "",
                "recipe.yaml: the recipe is empty. It needs at least model: {path: model.pt, input: [...]}."},
        Mistake{
            "List", "- a\n",
            "recipe.yaml line 1, column 1: a recipe must be a map of sections. Begin with model: {path: model.pt}."},
        Mistake{"NoModel", "seed: 1\n",
                "recipe.yaml: the recipe names no model. Write model: {path: model.pt, input: [1, 3, 32, 32]}."},
        Mistake{"TopLevelKey", kModel + "stagse: []\n",
                "recipe.yaml line 2, column 1: unknown key \"stagse\". Did you mean \"stages\"?"},
        Mistake{"ModelKey", "model: {pth: net.pt}\n",
                "recipe.yaml line 1, column 9, model: unknown option \"pth\". Did you mean \"path\"?"},
        Mistake{"InputShape", "model: {path: net.pt, input: [1, x]}\n",
                "recipe.yaml line 1, column 34: input \"x\" is not a shape. Write 1,3,224,224, or int64:1,128 with a "
                "type, or "
                "int64<30522:1,128 for values below 30522."},
        Mistake{"InputType", "model: {path: net.pt, input: 'in64:1,2'}\n",
                "recipe.yaml line 1, column 23: unknown input type \"in64\". Did you mean \"int64\"?"},
        Mistake{"UnknownStage", kModel + "stages:\n  - quantise.static: {}\n",
                "recipe.yaml line 3, column 5: unknown stage \"quantise.static\". Did you mean \"quantize.static\"?"},
        Mistake{"StageOption", kModel + "stages:\n  - prune.channel:\n      ratio: 0.5\n      roundto: 4\n",
                "recipe.yaml line 5, column 7, prune.channel: unknown option \"roundto\". Did you mean \"round_to\"?"},
        Mistake{
            "StageType", kModel + "stages:\n  - prune.channel: {ratio: half}\n",
            "recipe.yaml line 3, column 21, prune.channel: ratio is \"half\", must be a number. The default is 0.5."},
        Mistake{"NestedName", kModel + "stages:\n  - prune.channel: {criterion: tailor}\n",
                "recipe.yaml line 3, column 21: unknown criterion \"tailor\". Did you mean \"taylor\"?"},
        Mistake{"NestedOption", kModel + "stages:\n  - prune.channel: {criterion: {magnitude: {q: 1}}}\n",
                "recipe.yaml line 3, column 45, prune.channel.magnitude: unknown option \"q\". Did you mean \"p\"?"},
        Mistake{"StagesMap", kModel + "stages: {prune.channel: {}}\n",
                "recipe.yaml line 2, column 1: \"stages\" must be a list. Write each stage on a line of its own: - "
                "prune.channel: {ratio: "
                "0.5}"},
        Mistake{"TwoStagesInOne", kModel + "stages:\n  - prune.channel: {}\n    lowrank.svd: {}\n",
                "recipe.yaml line 3, column 5: a stage must be a name, or one name with its options. Write \"name\" or "
                "\"name: {option: "
                "value}\"."},
        Mistake{"Task", kModel + "task: clasification\n",
                "recipe.yaml line 2, column 1, task: type is \"clasification\", must be classification, regression or "
                "similarity. Did you "
                "mean \"classification\"?"},
        Mistake{"Metric", kModel + "task: {metric: top2}\n",
                "recipe.yaml line 2, column 8: unknown metric \"top2\". Did you mean \"top1\"?"},
        Mistake{"Gate", kModel + "gate: {max_drop: -1}\n",
                "recipe.yaml line 2, column 8, gate: max_drop is negative. It is the number of points that may be "
                "lost: 0.5 lets 88.7 "
                "fall to 88.2."},
        Mistake{"GateScalar", kModel + "gate: 0.5\n",
                "recipe.yaml line 2, column 1: \"gate\" must be a map. Write gate: {option: value}."},
        Mistake{"Device", kModel + "device: tpu\n",
                "recipe.yaml line 2, column 1, recipe: device is \"tpu\", must be cpu. Did you mean \"cpu\"?"},
        Mistake{"Seed", kModel + "seed: -1\n",
                "recipe.yaml line 2, column 1, recipe: seed is -1, must be at least 0. The default is 0."},
        Mistake{"ReportFormat", kModel + "report: {formats: [htm]}\n",
                "recipe.yaml line 2, column 10: unknown report format \"htm\". Did you mean \"html\"?"},
        Mistake{"Deploy", kModel + "deploy: perhaps\n",
                "recipe.yaml line 2, column 1: \"deploy\" must be on, off or a map of options"},
        Mistake{
            "DuplicateKey", kModel + "seed: 1\nseed: 2\n",
            "recipe.yaml line 3, column 1: \"seed\" is given twice, first at line 2, column 1. Remove one of them."}),
    [](const auto& info) { return info.param.name; });

TEST_F(RecipeTest, AnOverrideIsPlacedAtItself) {
    EXPECT_EQ(error(kModel + "stages: [prune.channel]\n", {"stages.0.ratio=2"}).substr(0, 38),
              "--set stages.0.ratio, prune.channel: r");
    EXPECT_EQ(read(kModel, {"seed=7"}).seed, 7u);
}

TEST_F(RecipeTest, AFileThatIsNotThereIsAnIoError) {
    EXPECT_ERROR(read_recipe(folder / "no.yaml", {}), IoError, "no.yaml: cannot open: No such file or directory");
    EXPECT_ERROR(read_recipe(folder.path(), {}), IoError, "is a folder, expected a file");
}

TEST(Input, ReadsShapesTypesAndLimits) {
    EXPECT_EQ(parse_input("1,3,224,224", "x").shape, (std::vector<int64_t>{1, 3, 224, 224}));
    const auto ids = parse_input("int64<5:2,4", "x").make(0);
    EXPECT_TRUE(at::equal(ids, at::tensor({0, 1, 2, 3, 4, 0, 1, 2}, at::kLong).reshape({2, 4}))) << ids;
    EXPECT_TRUE(at::equal(parse_input("bool:3", "x").make(0), at::ones({3}, at::kBool)));
    EXPECT_TRUE(at::equal(parse_input("2,2", "x").make(1), parse_input("2,2", "x").make(1)));
    for (const char* wrong : {"", "1,,2", "a", "int64:", "1,-2", "0,3", "float32<3:1", "99999,99999,99999"})
        EXPECT_ERROR(parse_input(wrong, "--input"), InvalidArgument, "--input: input");
}

TEST(Families, EveryRowOfEveryTableCanBeListed) {
    std::set<std::string> stages;
    for (const auto& row : all_stages()) stages.insert(row.name);
    for (const char* name :
         {"deploy", "distill.logits", "lowrank.svd", "prune.channel", "quantize.static", "train.finetune"})
        EXPECT_EQ(stages.count(name), 1u) << name;
    for (const auto& family : all_families()) {
        EXPECT_FALSE(family.rows.empty()) << family.name;
        for (const auto& row : family.rows) {
            EXPECT_FALSE(row.summary.empty()) << row.name;
            std::string note;
            row.options(note);  // never throws
        }
    }
}

TEST(Families, StagesAreThereOnceAndSorted) {
    for (size_t i = 1; i < all_stages().size(); ++i) EXPECT_LT(all_stages()[i - 1].name, all_stages()[i].name);
    for (size_t i = 1; i < all_losses().size(); ++i) EXPECT_LT(all_losses()[i - 1].name, all_losses()[i].name);
}

}  // namespace
}  // namespace coppice::cli
