// The program end to end: exit codes, messages and output of every command.
#include "program.h"

#include <coppice/quantize.h>

#include "support/schema.h"

#include <sys/stat.h>

#include <fstream>

namespace coppice {
namespace {

using namespace coppice::testing;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class ProgramTest : public ::testing::Test {
protected:
    Outcome run(const std::vector<std::string>& arguments, const std::vector<std::string>& environment = {}) {
        return run_program(arguments, folder.path(), environment);
    }
    void write(const std::string& name, const std::string& text) { std::ofstream(folder / name) << text; }
    std::string recipe(const std::string& rest) {
        return "model: {path: net.pt, input: [1, 3, 8, 8]}\nthreads: 1\nmeasure: {profile: 'off'}\n" + data_section() +
               rest;
    }
    bool exists(const std::string& name) { return std::filesystem::exists(folder / name); }

    TemporaryFolder folder;
};

TEST_F(ProgramTest, EveryCommandHasHelpWithAnExample) {
    for (const char* command : {"compress", "inspect", "eval", "report", "track", "list", "doctor"}) {
        const auto outcome = run({command, "--help"});
        EXPECT_EQ(outcome.code, 0) << command;
        EXPECT_EQ(outcome.err, "");
        EXPECT_THAT(outcome.out, HasSubstr(std::string("Example\n  coppice ") + command));
        EXPECT_EQ(run({"help", command}).out, outcome.out);
        std::istringstream lines(outcome.out);
        for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 120u) << line;
    }
    const auto all = run({"--help"});
    EXPECT_EQ(all.code, 0);
    EXPECT_THAT(all.out, HasSubstr("Exit codes"));
    EXPECT_THAT(run({"--version"}).out, StartsWith("coppice 0."));
}

TEST_F(ProgramTest, WrongUsageIsCodeTwoWithAHint) {
    EXPECT_EQ(run({}).code, 2);
    const std::vector<std::pair<std::vector<std::string>, std::string>> mistakes = {
        {{"compres"}, "error: coppice: unknown command \"compres\". Did you mean \"compress\"?\n"},
        {{"compress"},
         "error: coppice compress: no recipe is given. Write coppice compress recipe.yaml; see coppice compress "
         "--help.\n"},
        {{"compress", "a.yaml", "--resum"},
         "error: coppice compress: option \"resum\" does not exist. Did you mean --resume?\n"},
        {{"compress", "a.yaml", "b.yaml"},
         "error: coppice compress: more than one recipe is given: b.yaml. Write coppice compress "
         "recipe.yaml; see coppice compress --help.\n"},
        {{"inspect", "net.pt"},
         "error: coppice inspect: no input is given. Write one --input for each argument of forward, such as "
         "--input 1,3,224,224.\n"},
        {{"inspect", "net.pt", "--input", "1,x"},
         "error: --input: input \"1,x\" is not a shape. Write 1,3,224,224, or int64:1,128 with "
         "a type, or int64<30522:1,128 for values below 30522.\n"},
        {{"eval", "net.pt"},
         "error: coppice eval: neither data nor an input is given. Add --data recipe.yaml to compare quality, or "
         "--input 1,3,224,224 for size and time.\n"},
        {{"report"},
         "error: coppice report: no run directory is given. Write coppice report runs/name; see coppice report "
         "--help.\n"},
        {{"list", "prune.chanel"},
         "error: coppice list: unknown name \"prune.chanel\". Did you mean \"prune.channel\"?\n"},
    };
    for (const auto& [arguments, message] : mistakes) {
        const auto outcome = run(arguments);
        EXPECT_EQ(outcome.code, 2) << message;
        EXPECT_EQ(outcome.err, message);
        EXPECT_EQ(outcome.out, "");
    }
}

TEST_F(ProgramTest, FilesThatAreMissingOrWrongAreCodeOne) {
    EXPECT_EQ(run({"compress", "no.yaml"}).err, "error: no.yaml: cannot open: No such file or directory\n");
    EXPECT_EQ(run({"compress", "no.yaml"}).code, 1);
    write("recipe.yaml", "model: {path: no.pt, input: [1, 3, 8, 8]}\n");
    const auto missing = run({"compress", "recipe.yaml"});
    EXPECT_EQ(missing.code, 1);
    EXPECT_THAT(missing.err, HasSubstr("no.pt"));
    write("no.pt", "this is no model");
    const auto wrong = run({"compress", "recipe.yaml"});
    EXPECT_EQ(wrong.code, 1);
    EXPECT_THAT(wrong.err, StartsWith("error: "));
    EXPECT_EQ(std::count(wrong.err.begin(), wrong.err.end(), '\n'), 1) << wrong.err;
    EXPECT_FALSE(exists("runs"));
}

TEST_F(ProgramTest, AMistakeInTheRecipeIsCodeTwoWithItsPlace) {
    write("recipe.yaml", "model: {path: net.pt, input: [1, 3, 8, 8]}\nstages:\n  - prune.channel: {ratoi: 0.5}\n");
    const auto outcome = run({"compress", "recipe.yaml"});
    EXPECT_EQ(outcome.code, 2);
    EXPECT_EQ(
        outcome.err,
        "error: recipe.yaml line 3, column 21, prune.channel: unknown option \"ratoi\". Did you mean \"ratio\"?\n");
}

TEST_F(ProgramTest, AnInputThatDoesNotFitIsNamed) {
    write_model_and_data(folder.path());
    write("recipe.yaml", "model: {path: net.pt, input: [1, 4, 8, 8]}\n");
    const auto outcome = run({"compress", "recipe.yaml"});
    EXPECT_EQ(outcome.code, 2);
    EXPECT_THAT(outcome.err, HasSubstr("does not run on an input of Float 1 x 4 x 8 x 8"));
    const auto two = run({"inspect", "net.pt", "--input", "1,3,8,8", "--input", "1"});
    EXPECT_EQ(two.code, 2);
    EXPECT_THAT(two.err, HasSubstr("takes 1 inputs, 2 are given"));
}

TEST_F(ProgramTest, MissingDataAreNoticedBeforeWork) {
    write_model_and_data(folder.path());
    write("recipe.yaml", "model: {path: net.pt, input: [1, 3, 8, 8]}\nstages:\n  - train.finetune\n");
    const auto outcome = run({"compress", "recipe.yaml"});
    EXPECT_EQ(outcome.code, 2);
    EXPECT_THAT(
        outcome.err,
        StartsWith("error: recipe.yaml line 3, column 5, train.finetune: needs training data, and there is none"));
    EXPECT_FALSE(exists("runs"));
}

TEST_F(ProgramTest, ADryRunPrintsTheWholeRecipeAndWritesNothing) {
    write_model_and_data(folder.path());
    write("recipe.yaml", recipe("stages:\n  - prune.channel: {ratio: 0.5}\n"));
    const auto outcome = run({"compress", "recipe.yaml", "--dry-run", "--set", "stages.0.ratio=0.25"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_THAT(outcome.out, HasSubstr("ratio: 0.25"));
    EXPECT_THAT(outcome.out, HasSubstr("# 2 stages can run: prune.channel deploy. Nothing was run or written."));
    EXPECT_FALSE(exists("runs"));
}

TEST_F(ProgramTest, ARecipeRunsFromEndToEnd) {
    write_model_and_data(folder.path());
    write("small.yaml", recipe("stages:\n"
                               "  - prune.channel: {criterion: magnitude, ratio: 0.5, round_to: 1}\n"
                               "  - train.finetune: {epochs: 2, batch_size: 32, loss: distill.logits}\n"
                               "  - lowrank.svd: {min_size: 1}\n"
                               "  - quantize.static\n"));
    const auto outcome = run({"compress", "small.yaml", "--set", "measure.profile=quick"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_THAT(outcome.out, HasSubstr("model   runs/small/model.pt"));
    EXPECT_THAT(outcome.out, HasSubstr("report  runs/small/report.html"));
    for (const char* file :
         {"manifest.json", "recipe.yaml", "log.jsonl", "model.pt", "report.html", "report.json", "report.csv",
          "report.md", "00-baseline/measurement.json", "01-prune.channel/model.pt", "02-train.finetune/stage.json",
          "03-lowrank.svd/model.pt", "04-quantize.static/measurement.json", "05-deploy/model.pt"})
        EXPECT_TRUE(exists(std::string("runs/small/") + file)) << file;

    // Stock LibTorch loads and runs what came out.
    torch::NoGradGuard no_grad;
    auto module = torch::jit::load((folder / "runs" / "small" / "model.pt").string());
    EXPECT_EQ(module.forward({at::ones({2, 3, 8, 8})}).toTensor().sizes().vec(), (std::vector<int64_t>{2, 10}));
    EXPECT_LT(std::filesystem::file_size(folder / "runs" / "small" / "model.pt"),
              std::filesystem::file_size(folder / "net.pt"));
    const auto manifest = read_json(folder / "runs" / "small" / "manifest.json");
    EXPECT_EQ(manifest["model"]["sha256"], sha256_of_file((folder / "net.pt").string()));
    EXPECT_EQ(manifest["data"]["train"]["examples"], 192);
    EXPECT_EQ(manifest["metric"], "top1");
    const auto measurement = read_json(folder / "runs" / "small" / "00-baseline" / "measurement.json");
    EXPECT_EQ(measurement["quality"]["points"], 100.0);  // the labels are the model's own answers

    // The same folder is not overwritten; the resolved recipe gives the same run elsewhere.
    const auto again = run({"compress", "small.yaml", "--set", "measure.profile=quick"});
    EXPECT_EQ(again.code, 1);
    EXPECT_THAT(
        again.err,
        HasSubstr(
            "the folder already holds a run. Continue it with --resume, or choose a new one: --out runs/small-2"));
    EXPECT_EQ(run({"compress", "runs/small/recipe.yaml", "--dry-run"}).code, 0);

    const auto changed =
        run({"compress", "small.yaml", "--resume", "--set", "measure.profile=quick", "--set", "stages.1.epochs=3"});
    EXPECT_EQ(changed.code, 1);
    EXPECT_THAT(changed.err, HasSubstr("stages[1].train.finetune.epochs was 2, is 3"));

    const auto report = run({"report", "runs/small", "--format", "md", "--out", "elsewhere", "--load", "1000",
                             "--regions", "elsewhere/regions.csv"});
    EXPECT_EQ(report.code, 0) << report.err;
    EXPECT_THAT(report.out,
                ::testing::AnyOf(HasSubstr("days at 1000 inferences a day"), HasSubstr("earned back never")));
    const auto regions = read_text(folder / "elsewhere" / "regions.csv");
    EXPECT_EQ(std::count(regions.begin(), regions.end(), '\n'), 1 + 6 * 214) << "a row for each stage and zone";
    EXPECT_THAT(regions, HasSubstr("small,05-deploy,FR,2025,41.44,1.0,"));
    EXPECT_EQ(run({"report", "runs/small", "--load", "0"}).code, 2);
    // From the stored report alone, byte for byte.
    ASSERT_EQ(run({"report", "runs/small"}).code, 0);
    std::filesystem::create_directory(folder / "alone");
    std::filesystem::copy_file(folder / "runs/small/report.json", folder / "alone/report.json");
    const auto rebuilt = run({"report", "alone/report.json"});
    ASSERT_EQ(rebuilt.code, 0) << rebuilt.err;
    for (const char* name : {"report.html", "report.csv", "report.md"})
        EXPECT_TRUE(read_text(folder / "alone" / name) == read_text(folder / "runs/small" / name)) << name;
    EXPECT_THAT(run({"report", "runs/small/manifest.json"}).err, HasSubstr("is no report of Coppice"));
    EXPECT_EQ(run({"report", "alone/report.json", "--title", "x"}).code, 2);
    const auto priced = run({"report", "runs/small", "--format", "md", "--out", "elsewhere", "--price", "0.3",
                             "--embodied-kg", "1200", "--green-algorithms", "--memory-gb", "4"});
    EXPECT_EQ(priced.code, 0) << priced.err;
    for (const char* part : {"small, cost: ", "R = 1.0 compression", "small/05-deploy, SCI: ", "R = 1.0 inference",
                             "small/00-baseline, Green Algorithms: "})
        EXPECT_THAT(priced.out, HasSubstr(part));
    EXPECT_TRUE(exists("elsewhere/report.md"));
    EXPECT_FALSE(exists("elsewhere/report.html"));

    const auto compared = run({"report", "--compare", "runs/small/00-baseline", "runs/small"});
    EXPECT_EQ(compared.code, 0) << compared.err;
    EXPECT_THAT(compared.out, HasSubstr("B against A (95 %)"));
    const auto comparison = run({"report", "--compare", "runs/small/00-baseline", "runs/small", "--json"});
    const auto schema = run({"report", "--schema", "comparison"});
    EXPECT_THAT(coppice::testing::schema_violations(Json::parse(comparison.out), Json::parse(schema.out)),
                ::testing::IsEmpty());
    EXPECT_THAT(coppice::testing::schema_violations(read_json(folder / "runs" / "small" / "report.json"),
                                                    Json::parse(run({"report", "--schema", "report"}).out)),
                ::testing::IsEmpty());
    EXPECT_EQ(run({"report", "--compare", "runs/small"}).code, 2);
    EXPECT_THAT(run({"report", "--compare", "runs/small", "runs/none"}).err, HasSubstr("there is no such folder"));

    const auto eval = run({"eval", "net.pt", "runs/small/model.pt", "--data", "small.yaml", "--json"});
    ASSERT_EQ(eval.code, 0) << eval.err;
    const auto measurements = Json::parse(eval.out);
    EXPECT_EQ(measurements.size(), 2u);
    EXPECT_EQ(measurements[0]["quality"]["points"], 100.0);
    const auto table = run({"eval", "net.pt", "runs/small/model.pt", "--data", "small.yaml"});
    EXPECT_THAT(table.out, HasSubstr("runs/small/model.pt"));

    // A run stands for its model; the report of any models is a folder like that of a run.
    const std::vector<std::string> side_by_side = {"eval",       "runs/small", "runs/small/01-prune.channel/model.pt",
                                                   "--baseline", "net.pt",     "--data",
                                                   "small.yaml", "--out",      "side",
                                                   "--title",    "Two of them"};
    const auto written = run(side_by_side);
    ASSERT_EQ(written.code, 0) << written.err;
    EXPECT_THAT(written.out, HasSubstr("report  side/report.html"));
    const auto side = read_json(folder / "side" / "report.json");
    EXPECT_EQ(side["title"], "Two of them");
    EXPECT_EQ(side["runs"][0]["manifest"]["kind"], "eval");
    ASSERT_EQ(side["runs"][0]["stages"].size(), 3u);
    EXPECT_EQ(side["runs"][0]["stages"][0]["name"], "net");
    EXPECT_EQ(side["runs"][0]["stages"][1]["name"], "small");
    EXPECT_EQ(side["runs"][0]["stages"][2]["name"], "01-prune.channel");
    EXPECT_THAT(coppice::testing::schema_violations(side, Json::parse(run({"report", "--schema", "report"}).out)),
                ::testing::IsEmpty());
    EXPECT_EQ(run(side_by_side).code, 1);  // it is not overwritten
    EXPECT_EQ(run({"report", "side", "--format", "svg", "--x", "file_bytes", "--y", "macs"}).code, 0);
    EXPECT_THAT(read_text(folder / "side" / "report.svg"), HasSubstr("File size, log scale"));
    EXPECT_THAT(run({"report", "side", "--x", "file_byte"}).err, HasSubstr("Did you mean \"file_bytes\"?"));
    EXPECT_THAT(run({"eval", "runs", "--input", "1,3,8,8"}).err, HasSubstr("runs: the folder holds no model.pt"));
}

TEST_F(ProgramTest, EveryCommandThatLoadsAModelWarnsOfSumsThatSaturateOnEveryCpu) {
    // More than 100 groups: FBGEMM's kernel for depthwise convolutions.
    const auto model = build_model({{"d.weight", at::ones({104, 1, 3, 3})}},
                                   "def forward(self, x):\n    return torch.conv2d(x, self.d.weight, None, [1, 1], "
                                   "[1, 1], [1, 1], 104)\n");
    const Inputs image{at::ones({1, 104, 6, 6})};
    for (const std::string reduce : {"off", "on"}) {
        quantize::StaticOptions options;
        options.reduce_range = reduce;
        quantize::convert(quantize::plan_static(model, image, std::vector<Inputs>{image}, options))
            .save(folder / (reduce + ".pt"));
    }
    const std::string wide = "off.pt: 8-bit weights of the depthwise convolutions d";
    const auto outcome = run({"eval", "off.pt", "on.pt", "--input", "1,104,6,6", "--set", "measure.profile=off"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(wide));
    EXPECT_THAT(outcome.err, Not(HasSubstr("on.pt: ")));
    for (const std::string how : {"--threads=1", "--profile", "--json"}) {
        EXPECT_THAT(run({"inspect", "off.pt", "--input", "1,104,6,6", how}).out, HasSubstr(wide)) << how;
        EXPECT_THAT(run({"inspect", "on.pt", "--input", "1,104,6,6", how}).out, Not(HasSubstr("8-bit weights")));
    }
    for (const std::string name : {"off", "on"}) {
        write("recipe.yaml", "model: {path: " + name +
                                 ".pt, input: [1, 104, 6, 6]}\nmeasure: {profile: 'off'}\n"
                                 "deploy: {form: as_is}\n");
        const auto compressed = run({"compress", "recipe.yaml", "--out", name + "-run"});
        EXPECT_EQ(compressed.code, 0) << compressed.err;
        EXPECT_THAT(compressed.err, name == "off" ? ::testing::Matcher<std::string>(HasSubstr(wide))
                                                  : ::testing::Matcher<std::string>(Not(HasSubstr("8-bit weights"))));
    }
}

TEST_F(ProgramTest, ModelsAreComparedWithoutData) {
    write_model_and_data(folder.path());
    const auto outcome =
        run({"eval", "net.pt", "--input", "1,3,8,8", "--set", "measure.profile=off", "--out", "sizes"});
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_THAT(outcome.out, HasSubstr("No data were given: quality was not measured."));
    EXPECT_TRUE(exists("sizes/report.html"));
}

TEST_F(ProgramTest, CostsAreSummedByProject) {
    write_model_and_data(folder.path());
    write("recipe.yaml", recipe("deploy: off\nstages: [lowrank.svd: {min_size: 1}]\n"));
    ASSERT_EQ(run({"compress", "recipe.yaml", "--out", "a", "--project", "vision", "--tag", "nightly"}).code, 0);
    const auto table = run({"report", "--group-by", "project", "a", "--price", "0.3"});
    EXPECT_EQ(table.code, 0) << table.err;
    EXPECT_THAT(table.out, StartsWith("project  records"));
    const auto json = run({"report", "--group-by", "tag", "a", "--json"});
    const auto allocation = Json::parse(json.out);
    EXPECT_EQ(allocation["groups"][0]["name"], "nightly");
    EXPECT_THAT(
        coppice::testing::schema_violations(allocation, Json::parse(run({"report", "--schema", "allocation"}).out)),
        ::testing::IsEmpty());
    EXPECT_EQ(run({"report", "--group-by", "team", "a"}).code, 2);
    EXPECT_EQ(run({"report", "--group-by", "project", "a", "--carbon-price", "80"}).code, 2);
}

TEST_F(ProgramTest, AMissedGateIsCodeThreeAndKeepsTheModelBefore) {
    write_model_and_data(folder.path());
    write("recipe.yaml", recipe("deploy: off\ngate: {max_drop: 0}\nstages:\n"
                                "  - prune.channel: {criterion: random, ratio: 0.7, round_to: 1}\n"));
    const auto outcome = run({"compress", "recipe.yaml", "--out", "out"});
    EXPECT_EQ(outcome.code, 3) << outcome.err;
    EXPECT_THAT(outcome.err,
                HasSubstr("warning: the gate was missed by prune.channel; model.pt is the last model that passed it"));
    EXPECT_EQ(sha256_of_file((folder / "out" / "model.pt").string()),
              sha256_of_file((folder / "out" / "00-baseline" / "model.pt").string()));
}

TEST_F(ProgramTest, QuietSaysOnlyWhatMatters) {
    write_model_and_data(folder.path());
    write("recipe.yaml", recipe("deploy: off\nstages: [lowrank.svd: {min_size: 1}]\n"));
    EXPECT_EQ(run({"compress", "recipe.yaml", "--out", "out", "--quiet"}).err, "");
}

TEST_F(ProgramTest, InspectShowsLayersAndReasons) {
    write_model_and_data(folder.path());
    const auto table = run({"inspect", "net.pt", "--input", "1,3,8,8"});
    ASSERT_EQ(table.code, 0) << table.err;
    EXPECT_THAT(table.out, HasSubstr("conv1"));
    EXPECT_THAT(table.out, HasSubstr("1 x 16 x 4 x 4"));
    const auto json = run({"inspect", "net.pt", "--input", "1,3,8,8", "--json"});
    ASSERT_EQ(json.code, 0) << json.err;
    const auto inspection = Json::parse(json.out);
    // By hand: conv1 64 x 8 x 27, conv2 16 x 16 x 72, conv3 16 x 16 x 144, shortcut 16 x 16 x 8, fc 160.
    EXPECT_EQ(inspection["totals"]["macs"], 13824 + 18432 + 36864 + 2048 + 160);
    double share = 0;
    bool fc_kept = false;
    for (const auto& layer : inspection["layers"]) {
        share += layer["time_ratio"].get<double>();
        if (layer["name"] == "fc") {
            EXPECT_EQ(layer["parameters"], 170);
            EXPECT_TRUE(layer["quantize"]["possible"].get<bool>());
            fc_kept = !layer["prune"]["possible"].get<bool>() && !layer["prune"]["reason"].get<std::string>().empty();
        }
    }
    EXPECT_TRUE(fc_kept);  // its outputs are the classes
    EXPECT_NEAR(share, 1, 1e-6);
}

TEST_F(ProgramTest, InspectNamesOperatorsWithoutAPruningRule) {
    build_model({{"a.weight", sine({6, 3, 1, 1}, 0.4)}, {"b.weight", sine({5, 6, 1, 1}, 0.3)}}, R"(
def forward(self, x):
    return torch.conv2d(torch.fft_fft(torch.conv2d(x, self.a.weight), None, 1).abs(), self.b.weight)
)")
        .save(folder / "mix.pt");
    const auto table = run({"inspect", "mix.pt", "--input", "1,3,4,4"});
    ASSERT_EQ(table.code, 0) << table.err;
    EXPECT_THAT(table.out, HasSubstr("Operators without a pruning rule"));
    EXPECT_THAT(table.out, HasSubstr("aten::fft_fft at "));
    const auto json = Json::parse(run({"inspect", "mix.pt", "--input", "1,3,4,4", "--json"}).out);
    ASSERT_EQ(json["operators_without_rule"].size(), 1u);
    EXPECT_THAT(json["operators_without_rule"][0].get<std::string>(), StartsWith("aten::fft_fft at "));
    write_model_and_data(folder.path());
    EXPECT_THAT(run({"inspect", "net.pt", "--input", "1,3,8,8"}).out,
                ::testing::Not(HasSubstr("without a pruning rule")));
}

TEST_F(ProgramTest, InspectProfilesOperatorsAndWritesATrace) {
    write_model_and_data(folder.path());
    const auto table = run({"inspect", "net.pt", "--input", "1,3,8,8", "--profile", "--all", "--trace", "trace.json",
                            "--energy", "cpu_time", "--repeat", "2"});
    ASSERT_EQ(table.code, 0) << table.err;
    for (const char* text : {"activation", "energy", "conv1", "modelled: its share of the CPU time"})
        EXPECT_THAT(table.out, HasSubstr(text));
    const auto trace = Json::parse(read_text(folder / "trace.json"));
    size_t convolutions = 0;
    for (const auto& event : trace["traceEvents"]) convolutions += event["ph"] == "X" && event["cat"] == "aten::conv2d";
    EXPECT_EQ(convolutions, 4u) << "three and the shortcut";
    const auto json = run({"inspect", "net.pt", "--input", "1,3,8,8", "--json", "--energy", "none"});
    EXPECT_EQ(Json::parse(json.out)["layers"][0]["energy_j"]["provenance"], "unavailable") << json.err;
    EXPECT_THAT(run({"inspect", "net.pt", "--input", "1,3,8,8", "--energy", "rappl"}).err,
                HasSubstr("Did you mean \"rapl\"?"));
}

TEST_F(ProgramTest, ListKnowsEveryNameAndItsOptions) {
    const auto all = run({"list"});
    EXPECT_EQ(all.code, 0) << all.err;
    for (const char* name :
         {"prune.channel", "distill.logits", "cross_entropy", "top1", "cifar10", "taylor", "histogram", "energy"})
        EXPECT_THAT(all.out, HasSubstr(name));
    const auto one = run({"list", "prune.channel"});
    EXPECT_THAT(one.out, HasSubstr("round_to"));
    EXPECT_THAT(run({"list", "criterion"}).out, HasSubstr("magnitude"));
    const auto json = Json::parse(run({"list", "--json"}).out);
    EXPECT_GT(json.size(), 15u);
}

TEST_F(ProgramTest, EvalAccountsForAMillionInferences) {
    write_model_and_data(folder.path());
    const auto outcome = run({"eval",
                              "net.pt",
                              "--input",
                              "1,3,8,8",
                              "--json",
                              "--set",
                              "measure.profile=quick",
                              "--set",
                              "measure.relative_interval=1",
                              "--set",
                              "measure.energy=cpu_time",
                              "--set",
                              "measure.grid=500",
                              "--price",
                              "0.3",
                              "--embodied-kg",
                              "1461",
                              "--green-algorithms",
                              "--memory-gb",
                              "4"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const auto json = Json::parse(outcome.out)[0];
    const double joules = json["figures"]["energy_per_inference_j"]["value"];
    const double seconds = 1 / json["latency"][0]["throughput_per_s"]["value"].get<double>();
    const auto& accounts = json["accounts"];
    const auto expect = [](const Json& figure, double value) {  // 1e-9: the order of a few products
        EXPECT_NEAR(figure["value"].get<double>(), value, 1e-9 * value) << figure;
    };
    expect(accounts["cost"], 1e6 * joules * 0.3 / 3.6e6);
    expect(accounts["sci_g"], joules * 500 / 3.6e6 + 1000.0 / 86400 * seconds);  // 1 kg a day
    expect(accounts["green_algorithms"]["carbon_g"],
           accounts["green_algorithms"]["energy_j"]["value"].get<double>() * 500 / 3.6e6);
    EXPECT_GT(accounts["green_algorithms"]["energy_j"]["value"].get<double>(), 1e6 * seconds * 4 * 0.3725);
    const auto text = run({"eval", "net.pt", "--input", "1,3,8,8", "--set", "measure.profile=off", "--price", "0.3"});
    ASSERT_EQ(text.code, 0) << text.err;
    EXPECT_THAT(text.out, HasSubstr("quality was not measured"));
    EXPECT_THAT(text.out, HasSubstr("net.pt, cost: unavailable: timing is switched off"));
}

TEST_F(ProgramTest, DoctorSaysWhatIsThereAndWhyNot) {
    const auto text = run({"doctor"});
    EXPECT_EQ(text.code, 0) << text.err;
    for (const char* part : {"CPU", "LibTorch", "GPU", "Energy", "NVML", "int8 engines"})
        EXPECT_THAT(text.out, HasSubstr(part));
    const auto json = Json::parse(run({"doctor", "--json"}).out);
    EXPECT_GE(json["environment"]["cores"].get<int>(), 1);
    for (const auto& source : json["energy"])
        if (!source["usable"].get<bool>()) {
            EXPECT_FALSE(source["reason"].get<std::string>().empty()) << source;
            EXPECT_TRUE(source["read_seconds"].is_null());
        } else if (source["name"] == "cpu_time") {
            EXPECT_GT(source["read_seconds"].get<double>(), 0);
        }
}

TEST_F(ProgramTest, RealModelsAreInspected) {
    SKIP_WITHOUT_DATA("cifar10/resnet20.pt");
    const auto outcome = run({"inspect", std::filesystem::absolute(data_path("cifar10/resnet20.pt")).string(),
                              "--input", "1,3,32,32", "--json"});
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_NEAR(Json::parse(outcome.out)["totals"]["macs"].get<double>(), 40.55e6, 0.01e6);  // data/README.md
}

}  // namespace
}  // namespace coppice
