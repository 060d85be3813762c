//! A web page as they are: the text in the middle of menus, notices and a footer.

use std::fmt::Write as _;

use super::docx::escape;

/// A page with this title and these paragraphs in its article; one that begins with `# ` is a heading.
#[must_use]
pub fn page(title: &str, paragraphs: &[&str]) -> String {
    let mut article = String::new();
    for text in paragraphs {
        // Writing to a String can't fail.
        let _ = match text.strip_prefix("# ") {
            Some(heading) => writeln!(article, "      <h2>{}</h2>", escape(heading)),
            None => writeln!(article, "      <p>{}</p>", escape(text)),
        };
    }
    let title = escape(title);
    format!(
        r##"<!DOCTYPE html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <title>{title}</title>
  <style>nav {{ float: left }} .banner {{ background: gold }}</style>
  <script>window.visits = (window.visits || 0) + 1;</script>
</head>
<body>
  <div class="banner">We use cookies. <a href="#">Accept all</a> <a href="#">Settings</a></div>
  <header><a href="/">Home</a></header>
  <nav>
    <ul>
      <li><a href="/news">News</a></li><li><a href="/research">Research</a></li>
      <li><a href="/people">People</a></li><li><a href="/shop">Shop</a></li>
      <li><a href="/press">Press</a></li><li><a href="/jobs">Jobs</a></li>
    </ul>
  </nav>
  <main>
    <article>
      <h1>{title}</h1>
{article}    </article>
  </main>
  <aside><h3>Read also</h3><ul><li><a href="/a">Ten comets</a></li><li><a href="/b">Our new roof</a></li></ul></aside>
  <footer><a href="/imprint">Imprint</a> <a href="/privacy">Privacy</a> <a href="/contact">Contact</a></footer>
</body>
</html>
"##
    )
}
