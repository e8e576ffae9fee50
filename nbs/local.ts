// Run by Quarto after a render: takes out of the pages what Quarto would fetch from elsewhere for notebook widgets, of which there are none here.
const foreign = /<script src="https:\/\/[^"]*\/(?:require|jquery|embed-amd)[^"]*"[^>]*><\/script>\n?|<script type="application\/javascript"[^>]*>define\('jquery'.*?<\/script>\n?/g;

function mend(dir: string) {
  for (const o of Deno.readDirSync(dir)) {
    const path = `${dir}/${o.name}`;
    if (o.isDirectory) mend(path);
    else if (o.name.endsWith(".html")) Deno.writeTextFileSync(path, Deno.readTextFileSync(path).replace(foreign, ""));
  }
}

mend(Deno.env.get("QUARTO_PROJECT_OUTPUT_DIR")!);
