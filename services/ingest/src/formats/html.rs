//! HTML: what a page says, without what surrounds it.

use dom_query::{Document, NodeRef};
use dom_smoothie::{Config, Readability};

use super::structure::{Structure, one_line};
use super::{Extracted, Limits, Refusal};

/// Below this many characters a page is taken whole: there is nothing to choose from.
const SMALL_PAGE: usize = 500;

/// Never content, whatever they hold.
const DROPPED: &str = "script, style, noscript, template, svg, canvas, iframe, object, embed, audio, video, head > link, \
                       select, input, textarea, dialog, [hidden], [aria-hidden=true], [role=navigation], \
                       [role=search], [role=contentinfo], nav";

/// The main content with headings, lists, code and tables as blocks.
pub(crate) fn extract(html: &str, limits: &Limits) -> Result<Extracted, Refusal> {
    if depth(html) > limits.max_nesting {
        return Err(Refusal::TooDeep { what: "HTML page".into(), limit: limits.max_nesting });
    }
    let page = Document::from(html);
    let title = page.select("title").iter().next().map(|title| one_line(&title.text()));
    let article = main_content(html, &page);
    let article = article.as_ref().unwrap_or(&page);
    let mut walk = Walk::default();
    if let Some(root) = article.select("main, [role=main], article").nodes().first().filter(|_| single(article)) {
        walk.children(root);
    } else if let Some(body) = article.body() {
        walk.children(&body);
    } else {
        walk.children(&article.root());
    }
    walk.flush();
    let mut extracted = walk.structure.finish(title.filter(|title| !title.is_empty()));
    if extracted.text.trim().is_empty() {
        // A page of nothing but menus is still what was sent.
        let page = Document::from(html);
        page.select("script, style, noscript, template").remove();
        let mut walk = Walk::default();
        if let Some(body) = page.body() {
            walk.children(&body);
        }
        walk.flush();
        extracted = walk.structure.finish(extracted.title);
    }
    Ok(extracted)
}

/// Whether the page marks one element as its content, and that holds most of its words.
fn single(page: &Document) -> bool {
    let marked = page.select("main, [role=main]");
    let marked = if marked.length() == 1 { marked } else { page.select("article") };
    if marked.length() != 1 {
        return false;
    }
    let within = marked.text().split_whitespace().map(str::len).sum::<usize>();
    let all = page.body().map_or(0, |body| body.text().split_whitespace().map(str::len).sum());
    within * 2 >= all
}

/// Removes what surrounds the content from `page`; another document when only a guess finds the content.
fn main_content(html: &str, page: &Document) -> Option<Document> {
    page.select(DROPPED).remove();
    // Within an article, headers, footers and asides belong to it; on the page they hold its logo and imprint.
    for frame in page.select("header, footer, aside").nodes() {
        let inside = frame.ancestors_it(None).any(|above| above.has_name("article") || above.has_name("main"));
        let heads = frame.has_name("header") && has_heading(frame);
        if !inside && !heads {
            frame.remove_from_parent();
        }
    }
    // A button may be the words of a heading that unfolds.
    for button in page.select("button").nodes() {
        if !button.ancestors_it(None).any(|above| above.has_name("summary") || is_heading(&above)) {
            button.remove_from_parent();
        }
    }
    for list in page.select("ul, ol, table, div, p").nodes() {
        if is_menu(list) {
            list.remove_from_parent();
        }
    }
    let body = page.body()?;
    let (all, linked) = words(&body);
    if single(page) || all < SMALL_PAGE {
        return None;
    }
    let mut guess = Readability::new(html, None, Some(Config { disable_json_ld: true, ..Config::default() })).ok()?;
    let article = Document::from(guess.parse().ok()?.content);
    let (found, _) = article.body().map(|body| words(&body))?;
    // A guess that loses much of what is not a link has found one part of the page only.
    (found * 10 >= (all - linked.min(all)) * 7).then_some(article)
}

fn has_heading(node: &NodeRef<'_>) -> bool {
    node.descendants_it().any(|child| child.has_name("h1"))
}

fn is_heading(node: &NodeRef<'_>) -> bool {
    ["h1", "h2", "h3", "h4", "h5", "h6"].iter().any(|name| node.has_name(name))
}

/// Characters of text, and those of them in links.
fn words(node: &NodeRef<'_>) -> (usize, usize) {
    let count = |node: &NodeRef<'_>| node.text().split_whitespace().map(str::len).sum::<usize>();
    let linked = node.descendants_it().filter(|child| child.has_name("a")).map(|link| count(&link)).sum();
    (count(node), linked)
}

/// Many short links and hardly anything else.
fn is_menu(node: &NodeRef<'_>) -> bool {
    let links = node.descendants_it().filter(|child| child.has_name("a")).take(200).collect::<Vec<_>>();
    if links.len() < 4 {
        return false;
    }
    let (all, linked) = words(node);
    linked * 10 >= all * 9 && linked / links.len() <= 30
}

/// How deep elements lie inside one another, by a scan that needs no tree. Elements whose end may be left out are not
/// counted: a list of a thousand items without end tags is not deep.
fn depth(html: &str) -> usize {
    const UNCOUNTED: [&str; 32] = [
        "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr",
        "p", "li", "td", "th", "tr", "dt", "dd", "option", "optgroup", "thead", "tbody", "tfoot", "colgroup", "rp",
        "rt", "body", "html", "head",
    ];
    let bytes = html.as_bytes();
    let (mut depth, mut deepest, mut at) = (0usize, 0usize, 0usize);
    while let Some(next) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == b'<')) {
        let open = at + next;
        let closing = bytes.get(open + 1) == Some(&b'/');
        let start = open + 1 + usize::from(closing);
        let name = bytes.get(start..).unwrap_or_default();
        let length = name.iter().take(16).take_while(|byte| byte.is_ascii_alphanumeric()).count();
        at = start + length;
        let Some(name) = html.get(start..at).filter(|name| !name.is_empty()) else { continue };
        if UNCOUNTED.iter().any(|known| name.eq_ignore_ascii_case(known)) {
            continue;
        }
        if closing {
            depth = depth.saturating_sub(1);
        } else {
            depth += 1;
            deepest = deepest.max(depth);
        }
    }
    deepest
}

/// Turns a tree into blocks.
#[derive(Default)]
struct Walk {
    structure: Structure,
    /// The line that is being read.
    words: String,
}

impl Walk {
    fn children(&mut self, node: &NodeRef<'_>) {
        for child in node.children_it(false) {
            self.node(&child);
        }
    }

    fn node(&mut self, node: &NodeRef<'_>) {
        if node.is_text() {
            self.text(&node.text());
            return;
        }
        let Some(name) = node.node_name() else { return };
        match name.as_ref() {
            "h1" | "h2" | "h3" | "h4" | "h5" | "h6" => {
                self.flush();
                let level = name.bytes().last().map_or(1, |digit| i32::from(digit) - i32::from(b'0'));
                self.structure.heading(level, &node.text());
            }
            "pre" | "listing" | "xmp" => {
                self.flush();
                self.structure.code(&node.text());
            }
            "ul" | "ol" | "menu" | "dir" => {
                self.flush();
                let mut list = String::new();
                list_lines(node, 0, &mut list);
                self.structure.list(&list);
            }
            "table" if is_data(node) => {
                self.flush();
                let (caption, table) = table_lines(node);
                self.structure.paragraph(&caption);
                self.structure.table(&table);
            }
            "br" => self.words.push('\n'),
            "img" => {
                if let Some(alt) = node.attr("alt").filter(|alt| alt.split_whitespace().count() > 2) {
                    self.text(&alt);
                }
            }
            "script" | "style" | "noscript" | "template" | "title" | "head" => {}
            name if is_block(name) => {
                self.flush();
                self.children(node);
                self.flush();
            }
            _ => self.children(node),
        }
    }

    /// Words of a line: white space is one blank, wherever it stands.
    fn text(&mut self, text: &str) {
        push_words(&mut self.words, text);
    }

    fn flush(&mut self) {
        let words = std::mem::take(&mut self.words);
        self.structure.paragraph(&words);
    }
}

fn push_words(line: &mut String, text: &str) {
    let blank = |c: char| c.is_whitespace() && c != '\u{a0}';
    if text.starts_with(blank) && !line.is_empty() && !line.ends_with([' ', '\n']) {
        line.push(' ');
    }
    let mut first = true;
    for word in text.split(blank).filter(|word| !word.is_empty()) {
        if !first {
            line.push(' ');
        }
        first = false;
        line.push_str(word);
    }
    if text.ends_with(blank) && !first {
        line.push(' ');
    }
}

fn is_block(name: &str) -> bool {
    matches!(
        name,
        "address"
            | "article"
            | "aside"
            | "blockquote"
            | "body"
            | "caption"
            | "center"
            | "dd"
            | "details"
            | "div"
            | "dl"
            | "dt"
            | "fieldset"
            | "figcaption"
            | "figure"
            | "footer"
            | "form"
            | "header"
            | "hgroup"
            | "hr"
            | "html"
            | "legend"
            | "li"
            | "main"
            | "nav"
            | "p"
            | "section"
            | "summary"
            | "table"
            | "tbody"
            | "td"
            | "tfoot"
            | "th"
            | "thead"
            | "tr"
    )
}

/// Items of a list and of the lists in it, a line each.
fn list_lines(list: &NodeRef<'_>, level: usize, lines: &mut String) {
    let ordered = list.has_name("ol");
    let mut number = list.attr("start").and_then(|start| start.trim().parse::<i64>().ok()).unwrap_or(1);
    for item in list.children_it(false) {
        if item.has_name("ul") || item.has_name("ol") {
            list_lines(&item, level + 1, lines);
            continue;
        }
        let mut words = String::new();
        let mut inner = Vec::new();
        item_words(&item, &mut words, &mut inner);
        if !words.trim().is_empty() {
            let mark = if ordered { format!("{number}. ") } else { "- ".to_owned() };
            lines.push_str(&"  ".repeat(level.min(20)));
            lines.push_str(&mark);
            lines.push_str(&one_line(&words));
            lines.push('\n');
        }
        number += i64::from(item.has_name("li"));
        for list in inner {
            list_lines(&list, level + 1, lines);
        }
    }
}

/// The words of an item; lists in it are put aside.
fn item_words<'a>(node: &NodeRef<'a>, words: &mut String, lists: &mut Vec<NodeRef<'a>>) {
    if node.is_text() {
        push_words(words, &node.text());
        return;
    }
    for child in node.children_it(false) {
        if child.has_name("ul") || child.has_name("ol") {
            lists.push(child);
            continue;
        }
        let apart = child.node_name().is_some_and(|name| is_block(&name) || name.as_ref() == "br");
        if apart {
            words.push(' ');
        }
        item_words(&child, words, lists);
        if apart {
            words.push(' ');
        }
    }
}

/// Whether a table holds data: not when it only arranges the page (other tables, headings or many words in a cell).
fn is_data(table: &NodeRef<'_>) -> bool {
    let mut cells = 0usize;
    for inner in table.descendants_it() {
        let Some(name) = inner.node_name() else { continue };
        match name.as_ref() {
            "table" | "h1" | "h2" | "h3" | "pre" | "form" => return false,
            "td" | "th" => {
                cells += 1;
                if inner.children_it(false).filter(|child| child.has_name("p") || child.has_name("div")).count() > 3 {
                    return false;
                }
            }
            _ => {}
        }
    }
    cells >= 2
}

/// Caption, and a line for each row.
fn table_lines(table: &NodeRef<'_>) -> (String, String) {
    let (mut caption, mut lines) = (String::new(), String::new());
    for node in table.descendants_it() {
        if node.has_name("caption") {
            caption = one_line(&node.text());
        }
        if !node.has_name("tr") {
            continue;
        }
        let cells: Vec<String> = node
            .children_it(false)
            .filter(|cell| cell.has_name("td") || cell.has_name("th"))
            .map(|cell| {
                let (mut words, mut lists) = (String::new(), Vec::new());
                item_words(&cell, &mut words, &mut lists);
                lists.iter().for_each(|list| words.push_str(&list.text()));
                one_line(&words)
            })
            .collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            lines.push_str(&cells.join(" | "));
            lines.push('\n');
        }
    }
    (caption, lines)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::formats::tests::{kinds, limits};

    #[test]
    fn content_stays_and_menus_go() {
        let prose = "The river rises in the mountains and flows through many towns before it reaches the sea, and on its \
                     way it turns mills, carries ships and waters fields, as it has done for ages.";
        let html = format!(
            "<html><head><title>The  river</title><style>p{{}}</style></head><body>\
             <header><a href=/>Logo</a></header><nav><a>Home</a> <a>Shop</a></nav>\
             <div class=menu><ul><li><a>Mountains</a><li><a>Lakes</a><li><a>Seas</a><li><a>Imprint</a></ul></div>\
             <div><h1>River</h1><p>{prose}</p><h2>Towns</h2><ul><li>Bonn<ul><li>old</ul><li>Mainz</ul>\
             <pre>a\n  b</pre><table><tr><th>town<th>km<tr><td>Bonn<td>655</table><p>{prose}{prose}</p></div>\
             <footer>All rights reserved</footer><script>bad()</script></body></html>"
        );
        let document = extract(&html, &limits()).unwrap();
        assert_eq!(document.title.as_deref(), Some("The river"));
        let twice = format!("{prose}{prose}");
        assert_eq!(
            kinds(&document),
            [
                ("heading", "River"),
                ("paragraph", prose),
                ("heading", "Towns"),
                ("list", "- Bonn\n  - old\n- Mainz"),
                ("code", "a\n  b"),
                ("table", "town | km\nBonn | 655"),
                ("paragraph", twice.as_str()),
            ]
        );
    }

    #[test]
    fn a_small_page_is_taken_whole() {
        let document = extract("<div>One<br>two <b>three</b>.</div>loose &amp; end", &limits()).unwrap();
        assert_eq!(document.text, "One\ntwo three.\n\nloose & end");
    }

    #[test]
    fn nesting_without_end_is_refused_at_once() {
        let html = format!("<html><body>{}x{}", "<div>".repeat(100_000), "</div>".repeat(100_000));
        assert_eq!(extract(&html, &limits()).unwrap_err().class(), "nested-too-deep");
        let items = format!("<ul>{}</ul>", "<li>item<p>text".repeat(5000));
        assert!(extract(&items, &limits()).is_ok());
    }
}
