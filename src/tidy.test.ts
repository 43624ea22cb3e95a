/**
 * The house rules that a machine can check: which folder may import which, how long files and
 * functions get, who reads the clock, and what never lands. Function length is oxlint's
 * `max-lines-per-function` (.oxlintrc.json); here we make sure that it stays switched on.
 */
import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve, sep } from 'node:path';
import { test } from 'node:test';

const root = resolve(import.meta.dirname, '..');

/** Everything may import these files. */
const openFiles = ['errors.ts', 'limits.ts'];

/** The features: they may import each other's schema, routes and ports, and nothing more of them. */
const features = ['accounts', 'backup', 'catalog', 'files', 'placement', 'recovery', 'verify'];
const featurePorts = /^(schema|port|api|routes|commands|[a-z-]+-port|[a-z-]+-schema)\.ts$/;

const mechanisms = ['blobs', 'vault', 'datastore', 'nfs', 'nbd', 'formats', 'hypervisors'];
const belowFeatures = ['lib', ...mechanisms, 'workflows', 'database', 'proxy'];
const everything = [...belowFeatures, ...features, 'api', 'cli'];

/**
 * What a folder of src/ may import: a folder, or one file of it. Its own files are always allowed.
 * The files of src/ itself (main.ts, config.ts) are the composition root and may import all.
 */
const allowed: Readonly<Record<string, readonly string[]>> = {
  lib: [],
  blobs: ['lib'],
  vault: ['lib', 'blobs'],
  datastore: ['lib', 'blobs', 'vault', 'nfs/file-system.ts'],
  nfs: ['lib'],
  nbd: ['lib'],
  formats: ['lib'],
  hypervisors: ['lib', 'formats/vmx.ts', 'formats/libvirt-xml.ts'],
  workflows: ['lib', 'database'],
  database: ['lib'],
  proxy: ['lib', 'blobs', 'vault', 'datastore', 'nfs', 'nbd', 'formats', 'hypervisors/port.ts'],
  // The catalog is what the other features remember things in.
  ...Object.fromEntries(features.map((feature) => [feature, [...belowFeatures, 'catalog']])),
  catalog: belowFeatures,
  api: [...belowFeatures, ...features],
  cli: [...everything, 'main.ts', 'config.ts'],
  testing: everything,
};

interface Import {
  readonly from: string;
  readonly to: string;
  readonly line: number;
}

const sources = filesBelow('src');
const imports = sources.flatMap(importsOf);

test('imports go one way', () => {
  assert.ok(imports.length > 0, 'no import was found: the scanner is broken');
  assert.deepEqual(imports.map(complaintAbout).filter(isString), []);
});

test('the rule of imports bites', () => {
  const judge = (from: string, to: string) => complaintAbout({ from, to, line: 1 }) === undefined;
  assert.equal(judge('src/lib/a.ts', 'src/vault/b.ts'), false);
  assert.equal(judge('src/nfs/a.ts', 'src/datastore/b.ts'), false);
  assert.equal(judge('src/datastore/a.ts', 'src/nfs/server.ts'), false);
  assert.equal(judge('src/datastore/a.ts', 'src/nfs/file-system.ts'), true);
  assert.equal(judge('src/recovery/a.ts', 'src/backup/internals.ts'), false);
  assert.equal(judge('src/recovery/a.ts', 'src/backup/schema.ts'), true);
  assert.equal(judge('src/main.ts', 'src/testing/x.ts'), false);
  assert.equal(judge('src/vault/a.ts', 'lab/guest.ts'), false);
});

test('every folder of src/ stands in the table', () => {
  const folders = new Set(sources.filter((path) => path.includes('/', 4)).map(folderOf));
  assert.deepEqual(
    [...folders].filter((folder) => !(folder in allowed)),
    [],
  );
});

test('no cycles between folders', () => {
  const edges = new Map<string, Set<string>>();
  for (const { from, to } of imports) {
    if (isTest(from) || folderOf(from) === 'testing' || !inFolder(from) || !inFolder(to)) continue;
    if (features.includes(folderOf(from)) && features.includes(folderOf(to))) continue;
    if (folderOf(from) !== folderOf(to))
      edges.set(folderOf(from), (edges.get(folderOf(from)) ?? new Set()).add(folderOf(to)));
  }
  const reaches = (from: string, to: string, seen: Set<string>): boolean =>
    [...(edges.get(from) ?? [])].some(
      (next) => next === to || (!seen.has(next) && reaches(next, to, seen.add(next))),
    );
  assert.deepEqual(
    [...edges.keys()].filter((folder) => reaches(folder, folder, new Set())),
    [],
  );
});

test('files stay short', () => {
  const all = [...sources, ...['lab', 'tests', 'benchmarks', 'scripts'].flatMap(filesBelow)];
  const long = all.flatMap((path) => {
    const lines = read(path).trimEnd().split('\n').length;
    const most = path.startsWith('src/') && !isTest(path) ? 500 : 600;
    return lines > most ? [`${path}: ${lines} lines, at most ${most}`] : [];
  });
  assert.deepEqual(long, []);
});

test('the linter keeps functions short', () => {
  const rules = JSON.parse(read('.oxlintrc.json')).rules;
  assert.deepEqual(rules['max-lines-per-function'], ['error', { max: 70 }]);
});

test('Go of the lab keeps its functions short', () => {
  const programs = filesBelow('lab').filter((path) => path.endsWith('.go'));
  assert.ok(programs.length > 0, 'the lab has no Go: take this test out');
  // gofmt puts both braces of a function at the beginning of a line.
  const long = programs.flatMap((path) =>
    [...read(path).matchAll(/^func .*\{\n((?:(?!\}).*\n)*)\}/gm)]
      .filter(([, body = '']) => body.split('\n').length > 70)
      .map(([text]) => `${path}: ${text.split('\n')[0]}`),
  );
  assert.deepEqual(long, []);
});

test('only lib/clock.ts reads the clock', () => {
  const clock =
    /\bDate\.now\b|\bperformance\.now\b|\bnew Date\(\s*\)|\bprocess\.hrtime\b|\bDate\(\)/;
  const guilty = sources.filter((path) => path !== 'src/lib/clock.ts' && !isTidy(path));
  assert.deepEqual(linesMatching(guilty, clock, codeOnly), []);
});

test('nothing is untyped and nothing is left to do', () => {
  const every = [...sources, ...['lab', 'tests', 'benchmarks', 'scripts'].flatMap(filesBelow)];
  const others = every.filter((path) => !isTidy(path));
  assert.deepEqual(linesMatching(others, /:\s*any\b(?!\w)|\bas any\b|<any[,>]/, codeOnly), []);
  assert.deepEqual(linesMatching(others, /\b(TODO|FIXME|XXX)\b|@ts-(ignore|nocheck)/), []);
  assert.deepEqual(linesMatching(others.filter(isTest), /\b(test|it|describe)\.(only|skip)\(/), []);
});

test('no path of a build machine', () => {
  const documents = ['README.md', 'ARCHITECTURE.md', 'CONTRIBUTING.md', 'CHANGELOG.md'];
  const text = [
    ...sources,
    ...['lab', 'tests', 'benchmarks', 'docs', 'scripts'].flatMap(filesBelow),
  ];
  const every = [...text, ...documents.filter((path) => existsSync(join(root, path)))];
  const builder = /(^|[\s'"`(=])\/(work|farm|root|home|Users)\/\w/;
  assert.deepEqual(
    linesMatching(
      every.filter((path) => !isTidy(path)),
      builder,
    ),
    [],
  );
});

// ---------------------------------------------------------------------------------------------

function complaintAbout({ from, to, line }: Import): string | undefined {
  if (isTest(from)) return undefined;
  const complaint = `${from}:${line} imports ${to}, which its folder may not`;
  const here = folderOf(from);
  const there = folderOf(to);
  if (!inFolder(from)) return to.startsWith('src/') && there !== 'testing' ? undefined : complaint;
  const file = to.slice('src/'.length);
  if (here === there || openFiles.includes(file)) return undefined;
  if ((allowed[here] ?? []).some((name) => name === there || name === file)) return undefined;
  const name = to.slice(to.lastIndexOf('/') + 1);
  const meet = features.includes(here) && features.includes(there) && featurePorts.test(name);
  return meet ? undefined : complaint;
}

/** Static, type-only, re-exporting and dynamic imports of our own files. */
function importsOf(path: string): Import[] {
  const pattern = /(?:\bfrom\s+|\bimport\s+|\bimport\(\s*)(['"])((?:\.{1,2}\/|#src\/)[^'"\n]+)\1/g;
  const text = read(path);
  return [...text.matchAll(pattern)].flatMap((match) => {
    const target = match[2] ?? '';
    const absolute = target.startsWith('#src/')
      ? join(root, 'src', target.slice('#src/'.length))
      : resolve(root, dirname(path), target);
    const to = relative(root, absolute).split(sep).join('/');
    const line = text.slice(0, match.index).split('\n').length;
    return [{ from: path, to, line }];
  });
}

/** `src/vault/x.ts` -> `vault`; a file of src/ itself -> its own name; outside of src/ -> its path. */
function folderOf(path: string): string {
  return path.startsWith('src/') ? (path.split('/')[1] ?? '') : path;
}

/** True for what lies in a folder of src/, false for the files of src/ itself. */
function inFolder(path: string): boolean {
  return path.startsWith('src/') && path.split('/').length > 2;
}

function filesBelow(directory: string): string[] {
  if (!existsSync(join(root, directory))) return [];
  return readdirSync(join(root, directory), { withFileTypes: true }).flatMap((entry) => {
    const path = `${directory}/${entry.name}`;
    if (entry.isDirectory()) return entry.name === 'node_modules' ? [] : filesBelow(path);
    return /\.(ts|tsx|go|md)$/.test(entry.name) || /^(setup|run)$/.test(entry.name) ? [path] : [];
  });
}

function linesMatching(
  paths: readonly string[],
  pattern: RegExp,
  prepare: (line: string) => string = (line) => line,
): string[] {
  return paths.flatMap((path) =>
    read(path)
      .split('\n')
      .flatMap((line, index) =>
        pattern.test(prepare(line)) ? [`${path}:${index + 1}: ${line.trim()}`] : [],
      ),
  );
}

/** The line without comments and strings; enough for a rule about names. */
function codeOnly(line: string): string {
  if (/^\s*(\*|\/\*|\/\/)/.test(line)) return '';
  return line.replace(/'[^']*'|"[^"]*"/g, "''").replace(/\s\/\/.*$/, '');
}

function read(path: string): string {
  return readFileSync(join(root, path), 'utf8');
}

function isTest(path: string): boolean {
  return path.endsWith('.test.ts');
}

function isTidy(path: string): boolean {
  return path === 'src/tidy.test.ts';
}

function isString(value: string | undefined): value is string {
  return value !== undefined;
}
