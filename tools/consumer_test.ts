/** README's first example, run as a stranger's project would: only what `deno.json` exports, by the name that JSR gives it. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = new URL("../", import.meta.url);

type Block = { language: string; text: string };

/** The fenced blocks of a Markdown text, in order. */
function fencedBlocks(markdown: string): Block[] {
  return [...markdown.matchAll(/^```(\w*)[^\n]*\n([\s\S]*?)^```\s*$/gm)].map(([, language, text]) => ({
    language,
    text,
  }));
}

Deno.test("fencedBlocks() tells code from what stands around it", () => {
  const markdown = "# a\n\n```sh\nx\n```\ntext ``` here\n```ts\nlet a;\n\nlet b;\n```\n\n```\n3\n```\n";
  assert.deepEqual(fencedBlocks(markdown), [
    { language: "sh", text: "x\n" },
    { language: "ts", text: "let a;\n\nlet b;\n" },
    { language: "", text: "3\n" },
  ]);
});

Deno.test("README's first example prints what README says, in a project of its own", async () => {
  const blocks = fencedBlocks(readFileSync(new URL("README.md", root), "utf8"));
  const index = blocks.findIndex(({ language }) => language === "ts");
  assert.ok(index >= 0 && index + 1 < blocks.length, "README.md has a ts block and a block with its output after it");
  const { name, version } = JSON.parse(readFileSync(new URL("deno.json", root), "utf8"));

  const project = Deno.makeTempDirSync({ prefix: "consumer-" });
  try {
    const config = { links: [fileURLToPath(root)], imports: { [name]: `jsr:${name}@^${version}` } };
    Deno.writeTextFileSync(`${project}/deno.json`, JSON.stringify(config));
    Deno.writeTextFileSync(`${project}/main.ts`, blocks[index].text);
    const { success, stdout, stderr } = await new Deno.Command(Deno.execPath(), {
      args: ["run", "--check", "--quiet", "--no-prompt", "main.ts"],
      cwd: project,
      env: { NO_COLOR: "1" },
    }).output();
    assert.ok(success, new TextDecoder().decode(stderr));
    assert.equal(new TextDecoder().decode(stdout).trimEnd(), blocks[index + 1].text.trimEnd());
  } finally {
    Deno.removeSync(project, { recursive: true });
  }
});
